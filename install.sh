#!/bin/sh
# Installs vfio-console-hook on this host, removes it, or shows it at work.
#
# Everything is written beside its target first and put into place by rename; if
# anything fails, what was there before is put back. DESTDIR is for packagers: the
# tree below it is filled, and neither packages nor daemons of this host are touched.

set -u
umask 022
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
unset CDPATH

PYTHON=/usr/bin/python3
# A link to the directory of the installed version, which is called LIB.NUMBER. A process goes
# on with the version that it was started from, because modules are also loaded late.
LIB=/usr/lib/vfio-console-hook
COMMAND=/usr/bin/vfio-console-hook
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

# The units for systemd, and the links by which the first is started with each of libvirt's
# daemons: the ones that are shipped are in /usr/lib, and systemd reads that everywhere. Of
# the second, administrators enable instances.
UNITS=/usr/lib/systemd/system
UNIT=$UNITS/vfio-console-hook-recover.service
TAKE=$UNITS/vfio-console-hook-take@.service
WITH_LIBVIRTD=$UNITS/libvirtd.service.wants/${UNIT##*/}
WITH_VIRTQEMUD=$UNITS/virtqemud.service.wants/${UNIT##*/}
RELOAD_S=60  # how long systemd may take to read it

# What shows a refusal to people who were not there: a link that login prompts read, which
# leads nowhere as long as there is nothing to show, and an entry that desktops start.
ISSUE=/etc/issue.d/vfio-console-hook.issue
NOTICES=$RUN.status/issue
AUTOSTART=/etc/xdg/autostart/vfio-console-hook.desktop

# The manual pages, and what the shells read to complete the command: where they are in
# config/share, and in /usr/share. Debian's zsh reads another directory than all others.
MANUAL='man/man8/vfio-console-hook.8
man/man5/vfio-console-hook.yaml.5'
COMPLETIONS='bash-completion/completions/vfio-console-hook
fish/vendor_completions.d/vfio-console-hook.fish'
ZSH=zsh/site-functions/_vfio-console-hook
ZSH_DEBIAN=zsh/vendor-completions/_vfio-console-hook

# A line of each of our own files, by which they are recognized.
GATE_MARK='^# vfio-console-hook: the gate'
COMMAND_MARK='^"""The command vfio-console-hook'
UNIT_MARK='^# vfio-console-hook: the unit'
SHARED_MARK='vfio-console-hook: installed by install.sh$'

usage() {
    cat <<'END'
usage: ./install.sh              install, or upgrade what is installed
       ./install.sh --uninstall  remove what was installed; changed configuration is kept
       ./install.sh --demo       show the program at work on an embedded machine; no root needed

DESTDIR=DIR ./install.sh installs below DIR, for packages and images.
END
}

say() {
    printf '%s\n' "$*"
}

# A link that points nowhere is there, too.
is_there() {
    [ -e "$1" ] || [ -L "$1" ]
}

# --- leaving: everything or nothing -----------------------------------------------

created=  # directories made by this run, one a line, outer ones first
staged=   # targets whose file, link or directory is prepared beside them, in order
placed=   # those that are in place, and what was there before is beside them as *.old

# The lines of $1 from last to first.
backwards() {
    reversed=
    while IFS= read -r line; do
        [ -z "$line" ] || reversed="$line
$reversed"
    done <<END
$1
END
    printf '%s' "$reversed"
}

# The name beside a target under which it is prepared. libvirt runs every executable in
# qemu.d, so nothing is ever prepared in there; systemd reads no unit whose name begins
# with a dot.
beside() {
    case $1 in
        */qemu.d/*) printf '%s\n' "${1%/qemu.d/*}/.new-${1##*/}" ;;
        *) printf '%s\n' "${1%/*}/.new-${1##*/}" ;;
    esac
}

undo() {
    backwards "$placed" | while IFS= read -r target; do
        old=$(beside "$target").old
        rm -rf "$target"
        ! is_there "$old" || mv "$old" "$target"
    done
    backwards "$staged" | while IFS= read -r target; do
        new=$(beside "$target")
        rm -rf "$new"
        # A directory that was moved away, with nothing put in its place.
        [ ! -d "$new.old" ] || [ -L "$new.old" ] || mv "$new.old" "$target"
        rm -rf "$new.old"
    done
    backwards "$created" | while IFS= read -r dir; do
        rmdir "$dir" 2>/dev/null
    done
}

# One sentence and, if $2 is given, what to try.
stop() {
    trap - EXIT HUP INT TERM
    undo
    printf 'install.sh: %s\n' "$1" >&2
    [ -z "${2-}" ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

# --- writing ----------------------------------------------------------------------

# Makes directory $1 and what is missing above it, and remembers what it made.
make_dir() {
    [ ! -d "$1" ] || return 0
    case $1 in */*) [ "${1%/*}" = '' ] || make_dir "${1%/*}" ;; esac
    reason=$(mkdir "$1" 2>&1) || stop "cannot make the directory $1: ${reason##*: }; nothing was $doing"
    created="$created
$1"
}

# Begins a staged file or directory for target $1; its name is in $new.
stage() {
    make_dir "${1%/*}"
    new=$(beside "$1")
    rm -rf "$new" "$new.old"
    staged="$staged
$1"
}

# Stages a copy of file $1 for target $2, with mode $3. A carriage return at the end of
# the first line of a script would keep every VM from starting.
stage_file() {
    stage "$2"
    reason=$({ tr -d '\r' <"$1" >"$new" && chmod "$3" "$new"; } 2>&1) ||
        stop "cannot write $new: ${reason##*: }; nothing was $doing"
}

# Stages a link for target $1 that says $2.
stage_link() {
    stage "$1"
    reason=$(ln -s "$2" "$new" 2>&1) || stop "cannot make the link $new: ${reason##*: }; nothing was $doing"
}

# Puts what was staged for target $1 into place. A file or a link is replaced in one step, so
# that libvirt never misses the gate, nor the gate the program; a directory in two.
place() {
    new=$(beside "$1")
    old=$new.old
    if [ -d "$1" ] && [ ! -L "$1" ]; then
        mv "$1" "$old" 2>/dev/null || stop "cannot replace $1; nothing was $doing"
    elif is_there "$1"; then
        cp -pP "$1" "$old" 2>/dev/null || stop "cannot save $1; nothing was $doing"
    fi
    # Without -T it would go into the directory that a link leads to.
    reason=$(mv -fT "$new" "$1" 2>&1) || stop "cannot replace $1: ${reason##*: }; nothing was $doing"
    placed="$placed
$1"
}

place_all() {
    while IFS= read -r target; do
        [ -z "$target" ] || place "$target"
    done <<END
$staged
END
}

# With nothing but the shell and cat: a small host may lack cksum (Debian's busybox) or
# cmp, and then everything would be the same. The dot keeps newlines at the end.
same() {
    [ -f "$1" ] && [ -f "$2" ] && [ "$(cat "$1" && echo .)" = "$(cat "$2" && echo .)" ]
}

ours() {
    [ -f "$1" ] && grep -q "$2" "$1" 2>/dev/null
}

# Debian's systemctl writes /lib into the link of an instance.
is_our_link() {
    [ -L "$1" ] || return 1
    case $(readlink "$1") in "../${UNIT##*/}" | "$TAKE" | "${TAKE#/usr}") ;; *) return 1 ;; esac
}

is_our_issue() {
    [ -L "$1" ] && [ "$(readlink "$1")" = "$NOTICES" ]
}

is_our_program() {
    case $(readlink "$root$LIB") in "${LIB##*/}".[0-9]*) ;; *) false ;; esac
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

# --- looking ----------------------------------------------------------------------

# Files are installed where there is nothing or a file of ours, never over anything else.
check_file() {
    [ ! -d "$1" ] || stop "$1 is a directory; nothing was installed"
    [ -z "$2" ] || ! is_there "$1" || ours "$1" "$2" ||
        stop "$1 is not ours; nothing was installed"
}

check_link() {
    ! is_there "$1" || is_our_link "$1" || stop "$1 is not ours; nothing was installed"
}

check_dir() {
    [ -d "$1" ] || ! is_there "$1" ||
        stop "$1 is not a directory; nothing was installed"
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

# Sets gate to where ours goes. Other hooks are never touched.
choose_gate() {
    check_dir "$root$HOOKS"
    check_dir "$root${DROPIN%/*}"
    if [ -L "$root$MAIN" ] && ours "$root$MAIN" "$GATE_MARK"; then
        stop "$root$MAIN is a link to another copy of this hook; nothing was installed" "remove the link"
    fi
    if [ -d "$root$MAIN" ]; then
        stop "$root$MAIN is a directory; nothing was installed" "libvirt ignores it: move it away"
    fi
    if is_there "$root$MAIN"; then
        if ours "$root$MAIN" "$GATE_MARK"; then
            gate=$MAIN
        elif grep -q "^[^#]*$CHAINED" "$root$MAIN" 2>/dev/null; then
            gate=$CHAINED
        else
            version=$(libvirt_version)
            reads_dropins "$version" || stop \
                "$root$MAIN is not ours, and libvirt ${version:-(not found)} reads no qemu.d (6.5 does); nothing was installed" \
                "add this line to it, after its first line, and run install.sh again:
    [ ! -x $CHAINED ] || $CHAINED \"\$@\" || exit 1"
            gate=$DROPIN
        fi
    elif ours "$root$DROPIN" "$GATE_MARK"; then
        gate=$DROPIN
    else
        gate=$MAIN
    fi
    check_file "$root$gate" "$GATE_MARK"
}

# Is this a host with systemd? A tree for packages or images may become one.
has_systemd() {
    [ -n "$root" ] || [ -d /run/systemd/system ] || [ -d "$UNITS" ] || [ -d /lib/systemd/system ]
}

check_unit() {
    check_dir "$root$UNITS"
    check_file "$root$UNIT" "$UNIT_MARK"
    check_file "$root$TAKE" "$UNIT_MARK"
    for link in "$WITH_LIBVIRTD" "$WITH_VIRTQEMUD"; do
        check_dir "$root${link%/*}"
        check_link "$root$link"
    done
}

check_notices() {
    check_dir "$root${ISSUE%/*}"
    ! is_there "$root$ISSUE" || is_our_issue "$root$ISSUE" || stop "$root$ISSUE is not ours; nothing was installed"
    check_dir "$root${AUTOSTART%/*}"
    check_file "$root$AUTOSTART" "$SHARED_MARK"
}

# Sets shared to the manual pages and completions, and zsh to where zsh reads here.
choose_shared() {
    zsh=$ZSH
    [ ! -d "$root$SHARE/${ZSH_DEBIAN%/*}" ] || zsh=$ZSH_DEBIAN
    shared="$MANUAL
$COMPLETIONS
$zsh"
    for name in $shared; do
        check_dir "$root$SHARE/${name%/*}"
        check_file "$root$SHARE/$name" "$SHARED_MARK"
    done
}

python_is_new_enough() {
    "$PYTHON" -I -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null
}

python_has_libraries() {
    "$PYTHON" -I -c 'import lxml.etree, yaml' 2>/dev/null
}

python_has_libvirt() {
    "$PYTHON" -I -c 'import libvirt' 2>/dev/null
}

# Installs packages with the package manager of this host. What they are called by Debian,
# Fedora, openSUSE, Arch, Alpine and Void is in $1 to $6, some names each. Sets packages to
# the names here, and output to what was printed.
# shellcheck disable=SC2086  # one word a package
install_packages() {
    packages=
    output='no known package manager'
    for manager in apt-get dnf zypper pacman apk xbps-install; do
        if command -v "$manager" >/dev/null; then
            packages=$1
            break
        fi
        shift
    done
    case ${packages:+$manager} in
        apt-get)
            set -- apt-get install -y --no-install-recommends $packages
            export DEBIAN_FRONTEND=noninteractive
            output=$("$@" 2>&1) || output=$({ apt-get update && "$@"; } 2>&1) ;;
        dnf | xbps-install) output=$("$manager" install -y $packages 2>&1) ;;
        zypper) output=$(zypper --non-interactive install $packages 2>&1) ;;
        pacman) output=$(pacman -S --noconfirm --needed $packages 2>&1) ;;
        apk) output=$(apk add $packages 2>&1) ;;
        *) false ;;
    esac
}

# What was installed for lxml and PyYAML, for an uninstallation.
brought=

# The last line of output is reported: of the package manager, or else of Python.
install_libraries() {
    say "installing lxml and PyYAML for $PYTHON with the package manager of this host"
    had=
    [ ! -x "$PYTHON" ] || had=yes
    install_packages 'python3 python3-lxml python3-yaml' 'python3 python3-lxml python3-pyyaml' \
        'python3 python3-lxml python3-PyYAML' 'python python-lxml python-yaml' \
        'python3 py3-lxml py3-yaml' 'python3 python3-lxml python3-yaml' &&
        output=$("$PYTHON" -I -c 'import lxml.etree, yaml' 2>&1)
    brought=$packages
    [ -z "$had" ] || brought=${packages#* }
    python_has_libraries
}

check_python() {
    if [ -z "$root" ] && { [ ! -x "$PYTHON" ] || ! python_has_libraries; }; then
        install_libraries || stop \
            "cannot install lxml and PyYAML for $PYTHON: $(printf '%s' "$output" | tail -n 1); nothing was installed" \
            "install them by hand (Debian: python3-lxml python3-yaml; Fedora: python3-lxml python3-pyyaml)"
    fi
    [ -x "$PYTHON" ] || stop "there is no $PYTHON; nothing was installed"
    python_is_new_enough || stop "$PYTHON is older than Python 3.9; nothing was installed"
}

# libvirt's own module for Python, where libvirt is. The hook does not need it, so that it
# cannot be had is worth a note and nothing more.
recommend_libvirt() {
    [ -n "$(libvirt_version)" ] && ! python_has_libvirt || return 0
    say "  installing libvirt's module for $PYTHON, with which plan and doctor ask for VMs"
    install_packages python3-libvirt python3-libvirt python3-libvirt-python \
        libvirt-python py3-libvirt libvirt-python3
    if python_has_libvirt; then
        say "$packages" >>"$LIB/packages"
    else
        say "  it cannot be installed: $(printf '%s' "$output" | tail -n 1)
  everything works without it but doctor's look at VMs, and plan wants --xml"
    fi
}

# --- install ----------------------------------------------------------------------

# The package, its bytecode, the launcher and what the installer itself wants to know
# later: the configuration as shipped, and the directories that were made.
stage_program() {
    number=1
    while is_there "$root$LIB.$number"; do
        number=$((number + 1))
    done
    program=$LIB.$number
    stage "$root$program"
    lib=$new
    reason=$({ mkdir "$lib" && cp -R "$here/vfio_console_hook" "$lib/" &&
        cp "$here/config/default.yaml" "$lib/default.yaml" &&
        tr -d '\r' <"$here/hooks/launch.py" >"$lib/hook"; } 2>&1) ||
        stop "cannot write $lib: ${reason##*: }; nothing was installed"
    find "$lib" -name __pycache__ -prune -exec rm -rf {} +
    chmod -R u=rwX,go=rX "$lib"
    chmod 644 "$lib/hook"
    reason=$("$PYTHON" -I -m compileall -q -d "$program" "$lib" 2>&1) ||
        stop "cannot compile the program: $(printf '%s' "$reason" | tail -n 1); nothing was installed"
    reason=$("$PYTHON" -I -B -c 'import sys
sys.path.insert(0, sys.argv[1])
import vfio_console_hook.hook, vfio_console_hook.cli' "$lib" 2>&1) ||
        stop "the program does not load here: $(printf '%s' "$reason" | tail -n 1); nothing was installed"
}

# Removes the other versions, except those that a process still runs from.
remove_other_programs() {
    for other in "$root$LIB".[0-9]*; do
        [ "$other" = "$root$program" ] || [ -n "$(running_from "$other")" ] || rm -rf "$other"
    done
}

stage_documents() {
    stage "$root$DOC"
    doc=$new
    reason=$(mkdir "$doc" "$doc/examples" 2>&1) || stop "cannot make $doc: ${reason##*: }; nothing was installed"
    for file in README.md NEWS.md LICENSE; do
        # What is only in the source is neither named nor linked here.
        [ ! -f "$here/$file" ] || sed -e '/^<!-- only in the source/,/^<!-- end/d' \
            -e 's|](config/default.yaml)|](/etc/vfio-console-hook/default.yaml)|g' \
            -e 's|](config/|](examples/|g' "$here/$file" >"$doc/$file"
    done
    for file in "$here"/config/*; do
        [ ! -f "$file" ] || [ "${file##*/}" = default.yaml ] || cp "$file" "$doc/examples/"
    done
    chmod -R u=rwX,go=rX "$doc"
}

# default.yaml, by dpkg's rule: a changed file stays, and so does a removed one; what is
# shipped now is put beside it if it is not what was shipped before.
stage_config() {
    shipped=$here/config/default.yaml
    before=$root$LIB/default.yaml
    target=$root$ETC/default.yaml
    config=
    config_note=
    if [ ! -e "$target" ] && [ -f "$before" ] && [ -d "$root$ETC" ]; then
        config_note=' (was removed, and is not put back)'
    elif [ ! -e "$target" ] || { [ -f "$before" ] && same "$target" "$before"; }; then
        config=$target
    elif same "$target" "$shipped" || { [ -f "$before" ] && same "$before" "$shipped"; }; then
        config_note=' (kept)'
    else
        config=$target.new
        config_note=' (yours was kept; the new one is beside it as default.yaml.new)'
    fi
    [ -z "$config" ] || stage_file "$shipped" "$config" 644
    make_dir "$root$ETC/vms"
}

# The links never change: those that are there already stay.
stage_unit() {
    for unit in "$UNIT" "$TAKE"; do
        stage_file "$here/hooks/${unit##*/}" "$root$unit" 644
    done
    for link in "$WITH_LIBVIRTD" "$WITH_VIRTQEMUD"; do
        is_our_link "$root$link" || stage_link "$root$link" "../${UNIT##*/}"
    done
}

stage_notices() {
    is_our_issue "$root$ISSUE" || stage_link "$root$ISSUE" "$NOTICES"
    stage_file "$here/hooks/${AUTOSTART##*/}" "$root$AUTOSTART" 644
}

stage_shared() {
    for name in $shared; do
        from=$name
        [ "$name" != "$ZSH_DEBIAN" ] || from=$ZSH
        stage_file "$here/config/share/$from" "$root$SHARE/$name" 644
    done
}

# What an uninstallation cannot know otherwise: the packages and directories that were not there.
write_manifest() {
    {
        [ ! -f "$root$LIB/packages" ] || cat "$root$LIB/packages"
        [ -z "$brought" ] || say "$brought"
    } >"$lib/packages" || stop "cannot write $lib/packages; nothing was installed"
    {
        [ ! -f "$root$LIB/made" ] || cat "$root$LIB/made"
        printf '%s\n' "$created" | while IFS= read -r dir; do
            [ -z "$dir" ] || printf '%s\n' "${dir#"$root"}"
        done
    } >"$lib/made" || stop "cannot write $lib/made; nothing was installed"
}

# Makes systemd read its units again. None is started: nothing new has to be given back.
reload_systemd() {
    [ -z "$root" ] && [ -d /run/systemd/system ] || return 0
    set -- systemctl daemon-reload
    ! command -v timeout >/dev/null || set -- timeout "$RELOAD_S" "$@"
    "$@" >/dev/null 2>&1 || say "  systemd did not read its units again: run systemctl daemon-reload"
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
        pid=
        if [ -d /run/systemd/system ] && systemctl is-active --quiet "$daemon.service" 2>/dev/null; then
            running=$daemon
            # ExecReload calls kill(1), which a small host may not have.
            if systemctl reload "$daemon.service" 2>/dev/null ||
                hang_up "$daemon" "$(systemctl show --property=MainPID --value "$daemon.service")"; then
                say "  $daemon was reloaded and finds the hook"
            else
                say "  $daemon cannot be reloaded: restart it, so that it finds the hook"
            fi
        elif [ -r "/run/$daemon.pid" ] && { read -r pid <"/run/$daemon.pid" || [ -n "$pid" ]; } &&
            hang_up "$daemon" "$pid"; then
            running=$daemon
            say "  $daemon was reloaded and finds the hook"
        fi
    done
    if [ -n "$running" ]; then
        return
    elif [ -n "$(libvirt_version)" ]; then
        say "  libvirt is not running: it finds the hook when it starts"
    else
        say "  there is no libvirt here: see HOSTS WITHOUT LIBVIRT in man vfio-console-hook"
    fi
}

# Gives what this run has made the labels that SELinux's policy has for it, and nothing else:
# others have their own files in the same directories.
set_labels() {
    command -v restorecon >/dev/null || return 0
    # shellcheck disable=SC2086  # one word a path: none of ours has a blank
    { restorecon $created $placed && restorecon -R "$program" "$DOC"; } >/dev/null 2>&1 ||
        say "  restorecon failed: look at the SELinux labels"
}

install_hook() {
    doing=installed
    [ -n "$root" ] || [ "$(id -u)" = 0 ] ||
        stop "only root can install into /usr and /etc; nothing was installed" "use sudo, or set DESTDIR"
    set -- hooks/qemu hooks/launch.py hooks/command.py "hooks/${UNIT##*/}" "hooks/${TAKE##*/}" "hooks/${AUTOSTART##*/}" config/default.yaml vfio_console_hook/__init__.py
    for name in $MANUAL $COMPLETIONS $ZSH; do
        set -- "$@" "config/share/$name"
    done
    for file in "$@"; do
        [ -f "$here/$file" ] || stop "$here/$file is missing; nothing was installed" "run install.sh from a complete clone"
    done
    choose_gate
    check_file "$root$COMMAND" "$COMMAND_MARK"
    check_file "$root$ETC/default.yaml" ''
    ! has_systemd || check_unit
    check_notices
    choose_shared
    is_our_program || check_dir "$root$LIB"
    for dir in "$DOC" "$ETC" "$ETC/vms"; do
        check_dir "$root$dir"
    done
    for dir in "$LIB" "$DOC"; do
        [ ! -d "$root$dir" ] || [ -f "$root$LIB/made" ] || rmdir "$root$dir" 2>/dev/null ||
            stop "$root$dir is there and was not made by install.sh; nothing was installed" "remove the package that brought it"
    done
    check_python

    trap 'stop "interrupted; nothing was installed"' HUP INT TERM
    stage_program
    stage_documents
    stage_config
    stage_file "$here/hooks/command.py" "$root$COMMAND" 755
    ! has_systemd || stage_unit
    stage_notices
    stage_shared
    stage_link "$root$LIB" "${program##*/}"
    stage_file "$here/hooks/qemu" "$root$gate" 755
    write_manifest

    place_all
    trap - HUP INT TERM
    backwards "$placed" | while IFS= read -r target; do
        rm -rf "$(beside "$target").old"
    done
    remove_other_programs
    # A default.yaml.new of an earlier version that is no news any more.
    same "$root$ETC/default.yaml.new" "$root$LIB/default.yaml" || rm -f "$root$ETC/default.yaml.new"
    # The same event must not come to us twice.
    for other in "$MAIN" "$DROPIN" "$CHAINED"; do
        [ "$other" = "$gate" ] || ! ours "$root$other" "$GATE_MARK" || rm -f "$root$other"
    done
    for other in "$ZSH" "$ZSH_DEBIAN"; do
        [ "$other" = "$zsh" ] || ! ours "$root$SHARE/$other" "$SHARED_MARK" || rm -f "$root$SHARE/$other"
    done

    say "vfio-console-hook is installed:"
    say "  program  $root$LIB"
    say "  command  $root$COMMAND"
    say "  hook     $root$gate"
    ! has_systemd || say "  unit     $root$UNIT"
    say "  manual   man vfio-console-hook, man vfio-console-hook.yaml"
    say "  config   $root$ETC/default.yaml$config_note"
    [ "$gate" = "$MAIN" ] || say "  the hook in $root$MAIN was left as it is"
    [ -z "$root" ] || return 0
    set_labels
    ! has_systemd || reload_systemd
    reload_daemon
    recommend_libvirt
}

# --- uninstall --------------------------------------------------------------------

remove() {
    reason=$(rm -f "$1" 2>&1) || stop "cannot remove $1: ${reason##*: }"
}

# Removes the units, and sets found if there was something of them.
remove_unit() {
    unit=
    # The links are also those of instances that were enabled.
    for link in "$root$WITH_LIBVIRTD" "$root$WITH_VIRTQEMUD" \
        "$root"/etc/systemd/system/*.wants/vfio-console-hook-take@*; do
        if is_our_link "$link"; then
            remove "$link"
            unit=yes
        fi
    done
    for file in "$root$UNIT" "$root$TAKE"; do
        if ours "$file" "$UNIT_MARK" && [ ! -L "$file" ]; then
            remove "$file"
            unit=yes
        fi
    done
    [ -n "$unit" ] || return 0
    found=yes
    reload_systemd
    # A failed unit stays in systemd's list without its file, until this.
    [ -n "$root" ] || [ ! -d /run/systemd/system ] || systemctl reset-failed "${UNIT##*/}" 2>/dev/null
}

remove_hook() {
    doing=removed
    [ -n "$root" ] || [ "$(id -u)" = 0 ] || stop "only root can remove what is in /usr and /etc; nothing was removed" "use sudo"
    for claim in "$root$RUN/claims"/* "$root$RUN/claims"/.[!.]*; do
        if is_there "$claim"; then
            stop "a VM still holds a GPU of this host ($claim); nothing was removed" \
                "shut the VM down, or see vfio-console-hook status"
        fi
    done
    for dir in "$root$LIB".[0-9]*; do
        pid=$(running_from "$dir" | head -n 1)
        [ -z "$pid" ] || stop "process $pid still runs the program; nothing was removed" "wait until it has ended"
    done
    # The gate goes first: from then on no event looks for the program.
    found=
    for gate in "$MAIN" "$DROPIN" "$CHAINED"; do
        if ours "$root$gate" "$GATE_MARK" && [ ! -L "$root$gate" ]; then
            remove "$root$gate"
            found=yes
        fi
    done
    remove_unit
    ! is_our_issue "$root$ISSUE" || remove "$root$ISSUE"
    ! ours "$root$AUTOSTART" "$SHARED_MARK" || remove "$root$AUTOSTART"
    if [ ! -f "$root$LIB/made" ]; then
        # What an installation leaves behind that was killed.
        ! is_our_program || rm -f "$root$LIB"
        rm -rf "$root$LIB".[0-9]*
        say "vfio-console-hook ${found:+was only half there and }is not installed${root:+ in $root}"
        return
    fi
    made=$(cat "$root$LIB/made")
    brought=$(cat "$root$LIB/packages" 2>/dev/null)
    ! same "$root$ETC/default.yaml" "$root$LIB/default.yaml" || rm -f "$root$ETC/default.yaml"
    rm -f "$root$ETC/default.yaml.new"
    # What an installation that was killed has left beside its targets.
    for target in "$MAIN" "$DROPIN" "$CHAINED" "$COMMAND" "$UNIT" "$TAKE" "$WITH_LIBVIRTD" "$WITH_VIRTQEMUD" \
        "$ISSUE" "$AUTOSTART" "$ETC/default.yaml" "$ETC/default.yaml.new" "$LIB" "$DOC"; do
        new=$(beside "$root$target")
        rm -rf "$new" "$new.old"
    done
    ! ours "$root$COMMAND" "$COMMAND_MARK" || rm -f "$root$COMMAND"
    for name in $MANUAL $COMPLETIONS $ZSH $ZSH_DEBIAN; do
        ! ours "$root$SHARE/$name" "$SHARED_MARK" || rm -f "$root$SHARE/$name"
    done
    reason=$(rm -rf "$root$DOC" "$root$RUN" "$root$RUN.status" "$root$LIB" "$root$LIB".[0-9]* 2>&1) ||
        stop "cannot remove everything: ${reason#*: }"
    rmdir "$root$ETC/vms" "$root$ETC" 2>/dev/null
    backwards "$made" | while IFS= read -r dir; do
        rmdir "$root$dir" 2>/dev/null
    done
    say "vfio-console-hook is removed${root:+ from $root}"
    # shellcheck disable=SC2046,SC2086  # one word a package
    [ -z "$brought" ] || say "  install.sh has installed these packages, which stay:" $(printf '%s\n' $brought | sort -u)
    [ ! -d "$root$ETC" ] || find "$root$ETC" -type f | sort | while IFS= read -r file; do
        say "  kept, because it is yours: $file"
    done
}

# --- demo -------------------------------------------------------------------------

# With a Python that has lxml and PyYAML: one of the host, with the distribution's packages,
# or else a virtual environment in the clone, which needs a network.
show_demo() {
    doing=changed
    venv=$here/.venv
    found=
    cd "$here" || exit 1
    for PYTHON in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11 python3.10 \
        python3.9 "$venv/bin/python"; do
        start_demo
        [ -n "$found" ] || ! python_is_new_enough || found=$PYTHON
    done
    PYTHON=/usr/bin/python3
    [ "$(id -u)" != 0 ] || ! install_libraries || start_demo
    PYTHON=$found
    python_is_new_enough || stop "the demo needs Python 3.9 or later"
    say "making a virtual environment in $venv"
    reason=$({ "$PYTHON" -m venv --clear "$venv" && "$venv/bin/python" -m pip install --quiet lxml PyYAML; } 2>&1) ||
        stop "cannot make a virtual environment with lxml and PyYAML in $venv: $(printf '%s' "$reason" | tail -n 1)" \
            "install lxml and PyYAML for $PYTHON (Debian: python3-lxml python3-yaml; Fedora: python3-lxml python3-pyyaml)"
    PYTHON=$venv/bin/python
    start_demo
}

# Becomes the demo, if PYTHON is able to.
start_demo() {
    ! python_is_new_enough || ! python_has_libraries || exec "$PYTHON" -B -m tests.demo
}

here=$(cd "$(dirname "$0")" && pwd) || exit 1
root=${DESTDIR-}
root=${root%/}
case $root in -*) root=./$root ;; esac
doing=changed
case $#:${1-} in
    0:) install_hook ;;
    1:--uninstall) remove_hook ;;
    1:--demo) show_demo ;;
    1:--help | 1:-h) usage ;;
    *)
        usage >&2
        exit 2 ;;
esac
