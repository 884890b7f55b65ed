# shellcheck shell=sh disable=SC2034  # what reads this file uses what it sets
# vfio-console-hook: what install.sh and the scripts of the packages do on a host.
#
# Read with `.` and not run. $root is the tree in which its functions work, empty for this host. One
# that refuses returns 1, with the reason in $why and what to try in $hint.

# A link to the directory of the installed version, which is called LIB.NUMBER. A process goes
# on with the version that it was started from, because modules are also loaded late.
LIB=/usr/lib/vfio-console-hook
DOC=/usr/share/doc/vfio-console-hook
ETC=/etc/vfio-console-hook
HOOKS=/etc/libvirt/hooks
RUN=/run/vfio-console-hook
ISSUE=/etc/issue.d/vfio-console-hook.issue

# Where the gate may be: libvirt's own place, the directory it reads since 6.5, and a file that
# another hook calls, which AppArmor's profile of Debian allows in HOOKS.
MAIN=$HOOKS/qemu
DROPIN=$HOOKS/qemu.d/50-vfio-console-hook
CHAINED=$HOOKS/vfio-console-hook
# The same for events of the daemon itself, where systemd does not run the host.
DAEMON=$HOOKS/daemon
DAEMON_DROPIN=$HOOKS/daemon.d/50-vfio-console-hook
GATES="$MAIN $DROPIN $CHAINED $DAEMON $DAEMON_DROPIN"

# systemd reads /usr/lib everywhere. Administrators enable instances of the second unit.
UNITS=/usr/lib/systemd/system
UNIT=$UNITS/vfio-console-hook-recover.service
TAKE=$UNITS/vfio-console-hook-take@.service
WITH_LIBVIRTD=$UNITS/libvirtd.service.wants/${UNIT##*/}
WITH_VIRTQEMUD=$UNITS/virtqemud.service.wants/${UNIT##*/}
RELOAD_S=60  # how long systemd may take to read them

# Lines by which our files are recognized: a gate, the command, a unit, and all others.
GATE_MARK='^# vfio-console-hook: the gate'
MARKS="$GATE_MARK
^\"\"\"The command vfio-console-hook
^# vfio-console-hook: the unit
vfio-console-hook: installed by install.sh\$"

say() {
    printf '%s\n' "$*"
}

# The last line of what a program has printed, which is in $output.
last_line() {
    printf '%s' "$output" | tail -n 1
}

refuse() {
    why=$1 hint=${2-}
    return 1
}

# --- looking ----------------------------------------------------------------------

# A link that points nowhere is there, too.
is_there() {
    [ -e "$1" ] || [ -L "$1" ]
}

# Has file $1 a line of ours?
has_mark() {
    [ -f "$1" ] && grep -q "$2" "$1" 2>/dev/null
}

# Is $1 a link of ours, or a file? Debian's systemctl writes /lib into the link of an instance.
is_ours() {
    case $(readlink "$1") in
        "../${UNIT##*/}" | "$RUN.status/issue") ;;
        "$UNIT" | "${UNIT#/usr}" | "$TAKE" | "${TAKE#/usr}") ;;
        *) has_mark "$1" "$MARKS" ;;
    esac
}

# With nothing but the shell and cat: a small host may lack cksum (Debian's busybox) or
# cmp, and then everything would be the same. The dot keeps newlines at the end.
same() {
    [ -f "$1" ] && [ -f "$2" ] && [ "$(cat "$1" && echo .)" = "$(cat "$2" && echo .)" ]
}

# The processes that run from directory $1: each has it open (hooks/launch.py, hooks/command.py).
# ls only reads the links; [ -ef ] would follow them, and wait for a dead NFS server.
running_from() {
    dir=$(cd "$1" 2>/dev/null && pwd -P) || return 0
    # shellcheck disable=SC2010  # the links are wanted, not the names
    LC_ALL=C ls -l /proc/[0-9]*/fd 2>/dev/null | grep -e '^/proc/' -e " -> .*${LIB##*/}" |
        while IFS= read -r line; do
            case $line in
                /proc/*) pid=${line#/proc/} ;;
                *" -> $dir") say "${pid%/fd:}" ;;
            esac
        done
}

# The version of the libvirt in the tree, or nothing.
libvirt_version() {
    for daemon in "$root"/usr/*bin/virtqemud "$root"/usr/*bin/libvirtd; do
        answer=$("$daemon" --version 2>/dev/null) || continue
        say "${answer##* }"
        return
    done
}

# Does libvirt of version $1 run what is in qemu.d (6.5 and later)?
reads_dropins() {
    case $1 in
        [0-5].* | 6.[0-4] | 6.[0-4].*) false ;;
        [0-9]*.[0-9]*) ;;
        *) [ -d "$root${DROPIN%/*}" ] ;;
    esac
}

# Sets gate to where ours goes. Other hooks are never touched.
choose_gate() {
    main=$root$MAIN
    gate=$MAIN
    if [ -d "$main" ]; then
        refuse "$main is a directory" "libvirt ignores it: move it away" || return
    elif ! is_there "$main"; then
        ! has_mark "$root$DROPIN" "$GATE_MARK" || gate=$DROPIN
    elif has_mark "$main" "$GATE_MARK"; then
        return
    elif grep -q "^[^#]*$CHAINED" "$main" 2>/dev/null; then
        gate=$CHAINED
    else
        gate=$DROPIN
        version=$(libvirt_version)
        reads_dropins "$version" || refuse \
            "$main is not ours, and libvirt ${version:-(not found)} reads no qemu.d (6.5 does)" \
            "add this line to it, after its first line, and install vfio-console-hook again:
    [ ! -x $CHAINED ] || $CHAINED \"\$@\" || exit 1" || return
    fi
    may_be_gate "$root$gate" || refuse "$root$gate is not ours"
}

# Is at $1 nothing, or a gate of ours?
may_be_gate() {
    ! is_there "$1" || has_mark "$1" "$GATE_MARK"
}

# Sets daemon_gate to where the daemon's goes, if systemd does not run the host, or the host that a
# chroot, an image or a tree will be. If another hook is in the way, note says what to do.
choose_daemon_gate() {
    daemon_gate='' note=''
    [ -z "$root" ] && [ ! -d /run/systemd/system ] || return 0
    case $(readlink /sbin/init) in *systemd*) return ;; esac
    if may_be_gate "$DAEMON"; then
        daemon_gate=$DAEMON
    elif may_be_gate "$DAEMON_DROPIN" && reads_dropins "$(libvirt_version)"; then
        daemon_gate=$DAEMON_DROPIN
    else
        note="nothing gives back what a killed libvirtd leaves, as $DAEMON is not ours: let it run
    vfio-console-hook recover --wait 120 </dev/null >/dev/null 2>&1 &"
    fi
}

# Is nothing of this at work, so that it can be removed?
removable() {
    for claim in "$root$RUN/claims"/* "$root$RUN/claims"/.[!.]*; do
        ! is_there "$claim" || refuse "a VM still holds a GPU of this host ($claim)" \
            "shut the VM down, or see vfio-console-hook status" || return
    done
    for dir in "$root$LIB".[0-9]*; do
        pid=$(running_from "$dir" | head -n 1)
        [ -z "$pid" ] ||
            refuse "process $pid still runs the program" "wait until it has ended" || return
    done
}

# --- the gate, systemd and libvirt's daemon ---------------------------------------

# The name beside target $1 under which it is prepared. libvirt runs every executable in
# qemu.d and daemon.d, so nothing is ever prepared in there; systemd reads no unit whose name
# begins with a dot.
beside() {
    case $1 in "$HOOKS"/*.d/*) set -- "${1%/*}" ;; esac
    printf '%s\n' "${1%/*}/.new-${1##*/}"
}

# Removes a file of ours, and sets found.
remove() {
    rm -f "$1" || refuse "cannot remove $1" || return
    found=yes
}

# Removes the gates that are not $1 or $2: the same event must not come to us twice.
remove_gates() {
    for other in $GATES; do
        case $other in "$1" | "$2") continue ;; esac
        ! has_mark "$root$other" "$GATE_MARK" || remove "$root$other" || return
    done
}

# Removes the links by which our units are started, also those of instances that were enabled.
remove_links() {
    for link in "$root$WITH_LIBVIRTD" "$root$WITH_VIRTQEMUD" \
        "$root"/etc/systemd/system/*.wants/vfio-console-hook-*; do
        ! is_ours "$link" || remove "$link" || return
        # As systemctl does; what install.sh has made elsewhere it knows itself.
        case $link in "$root"/etc/*) rmdir "${link%/*}" 2>/dev/null || : ;; esac
    done
}

# Makes systemd read its units again. None is started: nothing new has to be given back.
reload_systemd() {
    [ -z "$root" ] && [ -d /run/systemd/system ] || return 0
    timeout "$RELOAD_S" systemctl daemon-reload >/dev/null 2>&1 ||
        say "  systemd did not read its units again: run systemctl daemon-reload"
}

# Sends SIGHUP to process $2 if it is daemon $1. A pid file may be stale or empty, and systemd
# prints 0 for no process: only a process has a comm, 15 bytes of it, which both names fit into.
hang_up() {
    comm=
    { read -r comm <"/proc/$2/comm"; } 2>/dev/null
    [ "$comm" = "$1" ] && kill -HUP "$2"
}

# Makes the daemon look for hooks: it does so when it starts and when it is reloaded.
reload_daemon() {
    running=
    for daemon in virtqemud libvirtd; do
        outcome='was reloaded and finds the hook'
        service=$daemon.service
        if [ -d /run/systemd/system ] && systemctl is-active --quiet "$service" 2>/dev/null; then
            # ExecReload calls kill(1), which a small host may not have.
            systemctl reload "$service" 2>/dev/null ||
                hang_up "$daemon" "$(systemctl show --property=MainPID --value "$service")" ||
                outcome='cannot be reloaded: restart it, so that it finds the hook'
        else
            hang_up "$daemon" "$(cat "/run/$daemon.pid" 2>/dev/null)" || continue
        fi
        running=yes
        say "  $daemon $outcome"
    done
    [ -z "$running" ] || return 0
    outcome='there is no libvirt here: see HOSTS WITHOUT LIBVIRT in man vfio-console-hook'
    [ -z "$(libvirt_version)" ] ||
        outcome='libvirt is not running: it finds the hook when it starts'
    say "  $outcome"
}

# --- SELinux ----------------------------------------------------------------------

SELINUX_MODULE=vfio_console_hook

# Sets denied to what the policy that is loaded denies to the program in $1, as a sentence.
ask_selinux() {
    # Without -I, by which Python would not look into this directory.
    denied=$(cd "$1" && "$PYTHON" -EsB -c 'from vfio_console_hook.machine.host import Host
from vfio_console_hook.commands.doctor import selinux_policy
print(selinux_policy.denied(Host()), end="")' 2>/dev/null) || :
}

selinux_module_is_loaded() {
    command -v semodule >/dev/null && semodule -l 2>/dev/null | grep -q "^$SELINUX_MODULE\$"
}

# Loads the module of the program in $1 where the policy denies something without it, or again, as
# it may be that of another version. It never fails: doctor says what is denied.
selinux_allow() {
    ask_selinux "$1"
    [ -n "$denied" ] || selinux_module_is_loaded || return 0
    [ -z "$denied" ] || say "  SELinux: $denied"
    if ! command -v semodule >/dev/null; then
        say "  there is no semodule to allow it: see vfio-console-hook doctor"
    elif ! output=$(semodule -i "$1/$SELINUX_MODULE.cil" 2>&1); then
        say "  semodule failed: $(last_line)"
    else
        # The module has a type for the gate, and one for what is in /run.
        for path in "$MAIN" "$DROPIN" "$CHAINED" "$RUN" "$RUN.status"; do
            [ ! -e "$path" ] || restorecon -R "$path" >/dev/null 2>&1 || :
        done
        ask_selinux "$1"
        outcome=${denied:+"loaded, but $denied: see vfio-console-hook doctor"}
        say "  the SELinux module $SELINUX_MODULE is ${outcome:-loaded, which allows it}"
    fi
}

# The reverse, when no file has its types any more.
selinux_forget() {
    ! selinux_module_is_loaded || output=$(semodule -r "$SELINUX_MODULE" 2>&1) ||
        say "  semodule -r $SELINUX_MODULE failed: $(last_line)"
}
