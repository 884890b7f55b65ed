# shellcheck shell=sh disable=SC2034  # what reads this file uses what it sets
# vfio-console-hook: what install.sh and the scripts of the packages do on a host.
#
# Read with `.` and not run. It says where everything is, and defines functions; $root is the
# tree they work in, empty for this host. A function that refuses returns 1, with the
# reason in $why and what to try in $hint.

# A link to the directory of the installed version, which is called LIB.NUMBER. A process goes
# on with the version that it was started from, because modules are also loaded late.
LIB=/usr/lib/vfio-console-hook
DOC=/usr/share/doc/vfio-console-hook
ETC=/etc/vfio-console-hook
HOOKS=/etc/libvirt/hooks
SHARE=/usr/share
RUN=/run/vfio-console-hook

# The three places where the gate may be: libvirt's own, the directory it reads since
# 6.5, and a file that another hook calls. Only programs in HOOKS (and in
# /usr/bin and its like) can be executed by a hook under Debian's AppArmor profile.
MAIN=$HOOKS/qemu
DROPIN=$HOOKS/qemu.d/50-vfio-console-hook
CHAINED=$HOOKS/vfio-console-hook
# The two places of the gate for the daemon's own events, where systemd does not run the host.
DAEMON=$HOOKS/daemon
DAEMON_DROPIN=$HOOKS/daemon.d/50-vfio-console-hook

# The unit that starts with libvirt's daemons, and the one of which administrators enable
# instances. systemd reads /usr/lib everywhere.
UNITS=/usr/lib/systemd/system
UNIT=$UNITS/vfio-console-hook-recover.service
TAKE=$UNITS/vfio-console-hook-take@.service
WITH_LIBVIRTD=$UNITS/libvirtd.service.wants/${UNIT##*/}
WITH_VIRTQEMUD=$UNITS/virtqemud.service.wants/${UNIT##*/}
# A link that login prompts read.
ISSUE=/etc/issue.d/vfio-console-hook.issue
RELOAD_S=60  # how long systemd may take to read them

# Lines by which our own files are recognized.
GATE_MARK='^# vfio-console-hook: the gate'
UNIT_MARK='^# vfio-console-hook: the unit'

say() {
    printf '%s\n' "$*"
}

# --- looking ----------------------------------------------------------------------

# A link that points nowhere is there, too.
is_there() {
    [ -e "$1" ] || [ -L "$1" ]
}

ours() {
    [ -f "$1" ] && grep -q "$2" "$1" 2>/dev/null
}

# With nothing but the shell and cat: a small host may lack cksum (Debian's busybox) or
# cmp, and then everything would be the same. The dot keeps newlines at the end.
same() {
    [ -f "$1" ] && [ -f "$2" ] && [ "$(cat "$1" && echo .)" = "$(cat "$2" && echo .)" ]
}

# Debian's systemctl writes /lib into the link of an instance.
is_our_link() {
    [ -L "$1" ] || return 1
    case $(readlink "$1") in
        "../${UNIT##*/}" | "$UNIT" | "${UNIT#/usr}" | "$TAKE" | "${TAKE#/usr}" | "$RUN.status/issue") ;;
        *) return 1 ;;
    esac
}

# The processes that run from directory $1: each has it open (hooks/launch.py, hooks/command.py).
# ls only reads the links; [ -ef ] would follow them, and wait for a dead NFS server.
running_from() {
    dir=$(cd "$1" 2>/dev/null && pwd -P) || return 0
    # shellcheck disable=SC2010  # the links are wanted, not the names
    LC_ALL=C ls -l /proc/[0-9]*/fd 2>/dev/null |
        LC_ALL=C grep -e '^/proc/' -e " -> .*${LIB##*/}" | while IFS= read -r line; do
        case $line in
            /proc/*) pid=${line#/proc/} ;;
            *" -> $dir") printf '%s\n' "${pid%/fd:}" ;;
        esac
    done
}

# The version of the libvirt in the tree, or nothing.
libvirt_version() {
    for daemon in usr/sbin/virtqemud usr/sbin/libvirtd usr/bin/virtqemud usr/bin/libvirtd; do
        [ -x "$root/$daemon" ] || continue
        answer=$("$root/$daemon" --version 2>/dev/null) || continue
        printf '%s\n' "${answer##* }"
        return
    done
}

# Does this libvirt run what is in qemu.d (6.5 and later)?
reads_dropins() {
    major=${1%%.*}
    minor=${1#*.}
    minor=${minor%%.*}
    case $major:$minor in
        :* | *: | *[!0-9:]*) [ -d "$root${DROPIN%/*}" ] ;;
        *) [ "$major" -gt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -ge 5 ]; } ;;
    esac
}

refuse() {
    why=$1
    hint=${2-}
    return 1
}

# Sets gate to where ours goes. Other hooks are never touched.
choose_gate() {
    for dir in "$root$HOOKS" "$root${DROPIN%/*}"; do
        [ -d "$dir" ] || ! is_there "$dir" || refuse "$dir is not a directory" || return
    done
    if [ -L "$root$MAIN" ] && ours "$root$MAIN" "$GATE_MARK"; then
        refuse "$root$MAIN is a link to another copy of this hook" "remove the link"
        return
    elif [ -d "$root$MAIN" ]; then
        refuse "$root$MAIN is a directory" "libvirt ignores it: move it away"
        return
    elif ! is_there "$root$MAIN"; then
        gate=$MAIN
        ! ours "$root$DROPIN" "$GATE_MARK" || gate=$DROPIN
    elif ours "$root$MAIN" "$GATE_MARK"; then
        gate=$MAIN
    elif grep -q "^[^#]*$CHAINED" "$root$MAIN" 2>/dev/null; then
        gate=$CHAINED
    else
        version=$(libvirt_version)
        reads_dropins "$version" || refuse \
            "$root$MAIN is not ours, and libvirt ${version:-(not found)} reads no qemu.d (6.5 does)" \
            "add this line to it, after its first line, and install vfio-console-hook again:
    [ ! -x $CHAINED ] || $CHAINED \"\$@\" || exit 1" || return
        gate=$DROPIN
    fi
    if [ -d "$root$gate" ]; then
        refuse "$root$gate is a directory"
    elif is_there "$root$gate" && ! ours "$root$gate" "$GATE_MARK"; then
        refuse "$root$gate is not ours"
    fi
}

# Does systemd run this host? In a chroot and in an image it does not run yet, and a tree for
# packages or images may become such a host.
boots_systemd() {
    [ -z "$root" ] || return 0
    [ ! -d /run/systemd/system ] || return 0
    case $(readlink /sbin/init) in *systemd*) ;; *) return 1 ;; esac
}

# May a gate go to $1: is nothing there, or ours, and a directory above it, or nothing?
is_free() {
    [ -d "${1%/*}" ] || ! is_there "${1%/*}" || return 1
    [ ! -d "$1" ] || return 1
    ! is_there "$1" || ours "$1" "$GATE_MARK"
}

# Sets daemon_gate to where the gate for the daemon's events goes. It is no reason to refuse
# anything: where another hook is in the way, daemon_gate is empty, and note says what to do.
choose_daemon_gate() {
    daemon_gate=
    note=
    ! boots_systemd || return 0
    if is_free "$DAEMON"; then
        daemon_gate=$DAEMON
    elif is_free "$DAEMON_DROPIN" && reads_dropins "$(libvirt_version)"; then
        daemon_gate=$DAEMON_DROPIN
    fi
    [ -z "$daemon_gate" ] || return 0
    note="nothing gives back what a killed libvirtd leaves, as $DAEMON is not ours: let it run
    vfio-console-hook recover --wait 120 </dev/null >/dev/null 2>&1 &"
}

# Is nothing of this at work, so that it can be removed?
removable() {
    for claim in "$root$RUN/claims"/* "$root$RUN/claims"/.[!.]*; do
        ! is_there "$claim" || refuse "a VM still holds a GPU of this host ($claim)" \
            "shut the VM down, or see vfio-console-hook status" || return
    done
    for dir in "$root$LIB".[0-9]*; do
        pid=$(running_from "$dir" | head -n 1)
        [ -z "$pid" ] || refuse "process $pid still runs the program" "wait until it has ended" || return
    done
}

# --- the gate, systemd and libvirt's daemon ---------------------------------------

# The name beside a target under which it is prepared. libvirt runs every executable in
# qemu.d and daemon.d, so nothing is ever prepared in there; systemd reads no unit whose name
# begins with a dot.
beside() {
    case $1 in
        */qemu.d/*) printf '%s\n' "${1%/qemu.d/*}/.new-${1##*/}" ;;
        */daemon.d/*) printf '%s\n' "${1%/daemon.d/*}/.new-daemon-${1##*/}" ;;
        *) printf '%s\n' "${1%/*}/.new-${1##*/}" ;;
    esac
}

# Removes the gates where they are, except at $1 and $2, because the same event must not come to
# us twice. Sets found if there was one.
remove_gates() {
    for other in "$MAIN" "$DROPIN" "$CHAINED" "$DAEMON" "$DAEMON_DROPIN"; do
        case $other in "$1" | "$2") continue ;; esac
        if ours "$root$other" "$GATE_MARK" && [ ! -L "$root$other" ]; then
            rm -f "$root$other" || refuse "cannot remove $root$other" || return
            found=yes
        fi
    done
}

# Makes systemd read its units again. None is started: nothing new has to be given back.
reload_systemd() {
    [ -z "$root" ] && [ -d /run/systemd/system ] || return 0
    set -- systemctl daemon-reload
    ! command -v timeout >/dev/null || set -- timeout "$RELOAD_S" "$@"
    "$@" >/dev/null 2>&1 || say "  systemd did not read its units again: run systemctl daemon-reload"
}

# Removes the links by which our units are started, also those of instances that were enabled.
# Sets found if there was one.
remove_links() {
    for link in "$root$WITH_LIBVIRTD" "$root$WITH_VIRTQEMUD" \
        "$root"/etc/systemd/system/*.wants/vfio-console-hook-*; do
        if is_our_link "$link"; then
            rm -f "$link" || refuse "cannot remove $link" || return
            # As systemctl does; what install.sh has made elsewhere it knows itself.
            case $link in "$root"/etc/*) rmdir "${link%/*}" 2>/dev/null || : ;; esac
            found=yes
        fi
    done
}

# Sends SIGHUP to process $2 if it is daemon $1. A pid file may be stale or empty, systemd
# prints 0 for no process, and kill takes 0 for its own process group.
hang_up() {
    case $2 in '' | 0* | 1 | *[!0-9]*) return 1 ;; esac
    # The kernel cuts comm at 15 bytes, which the names of both daemons fit into.
    comm=
    { read -r comm <"/proc/$2/comm"; } 2>/dev/null
    [ "$comm" = "$1" ] && kill -HUP "$2"
}

# Makes the daemon look for hooks: it does so when it starts and when it is reloaded.
reload_daemon() {
    running=
    for daemon in virtqemud libvirtd; do
        outcome="was reloaded and finds the hook"
        if [ -d /run/systemd/system ] && systemctl is-active --quiet "$daemon.service" 2>/dev/null; then
            # ExecReload calls kill(1), which a small host may not have.
            systemctl reload "$daemon.service" 2>/dev/null ||
                hang_up "$daemon" "$(systemctl show --property=MainPID --value "$daemon.service")" ||
                outcome="cannot be reloaded: restart it, so that it finds the hook"
        else
            pid=
            { read -r pid <"/run/$daemon.pid"; } 2>/dev/null || :
            hang_up "$daemon" "$pid" || continue
        fi
        running=$daemon
        say "  $daemon $outcome"
    done
    if [ -n "$running" ]; then
        return
    elif [ -n "$(libvirt_version)" ]; then
        say "  libvirt is not running: it finds the hook when it starts"
    else
        say "  there is no libvirt here: see HOSTS WITHOUT LIBVIRT in man vfio-console-hook"
    fi
}

# --- SELinux ----------------------------------------------------------------------

# Its file is beside the program. It allows what the hook needs, and nothing else.
SELINUX_MODULE=vfio_console_hook

# Prints what the policy that is loaded denies to the program in $1, as a sentence, or nothing.
selinux_denies() {
    [ -e /sys/fs/selinux/enforce ] && [ -e /etc/selinux/config ] || return 0
    "${PYTHON:-/usr/bin/python3}" -I -B -c 'import sys
sys.path.insert(0, sys.argv[1])
from vfio_console_hook.commands.doctor import selinux_policy
from vfio_console_hook.machine.host import Host
print(selinux_policy.denied(Host()), end="")' "$1" 2>/dev/null || true
}

selinux_module_is_loaded() {
    command -v semodule >/dev/null && semodule -l 2>/dev/null | grep -q "^$SELINUX_MODULE\$"
}

# Loads the module of the program in $1 where the policy denies something without it. One that
# is loaded is loaded again, as it may be that of another version. It never fails: the hook is
# installed all the same, and doctor says what is denied.
selinux_allow() {
    denied=$(selinux_denies "$1")
    [ -n "$denied" ] || selinux_module_is_loaded || return 0
    [ -z "$denied" ] || say "  SELinux: $denied"
    if ! command -v semodule >/dev/null; then
        say "  there is no semodule to allow it: see vfio-console-hook doctor"
    elif ! reason=$(semodule -i "$1/$SELINUX_MODULE.cil" 2>&1); then
        say "  semodule failed: $(printf '%s' "$reason" | tail -n 1)"
    else
        # The module has a type for the gate, and one for what is in /run.
        for path in "$MAIN" "$DROPIN" "$CHAINED" "$RUN" "$RUN.status"; do
            [ ! -e "$path" ] || restorecon -R "$path" >/dev/null 2>&1 || true
        done
        denied=$(selinux_denies "$1")
        if [ -n "$denied" ]; then
            say "  the module $SELINUX_MODULE is loaded, but $denied: see vfio-console-hook doctor"
        else
            say "  the SELinux module $SELINUX_MODULE is loaded, which allows it"
        fi
    fi
}

# The reverse, when no file has its types any more.
selinux_forget() {
    selinux_module_is_loaded || return 0
    reason=$(semodule -r "$SELINUX_MODULE" 2>&1) ||
        say "  semodule -r $SELINUX_MODULE failed: $(printf '%s' "$reason" | tail -n 1)"
}
