#!/bin/sh
# usage: ./install.sh              install, or upgrade what is installed
#        ./install.sh --uninstall  remove what was installed; changed configuration is kept
#        ./install.sh --package deb|rpm|arch [DIR]
#                                  make a package in DIR, or here; no root needed
#        ./install.sh --demo       show the program at work on an embedded machine; no root needed
#
# DESTDIR=DIR ./install.sh installs below DIR, for packages and images.

# It looks first. Then all is written beside its target and put into place by rename; if anything
# fails, what was there before is put back. With DESTDIR this host's packages and daemons stay.

set -u
umask 022
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
unset CDPATH

here=$(cd "$(dirname "$0")" && pwd) || exit 1
root=${DESTDIR-}
root=${root%/}
case $root in -*) root=./$root ;; esac
# shellcheck source=hooks/setup.sh
. "$here/hooks/setup.sh"

PYTHON=/usr/bin/python3
CONFIG=$ETC/default.yaml

# What is installed beside the program, its documents and the configuration: on which hosts
# (choose_files), the mode, where it is in the clone, and where on the host, if that is not the same
# place below /usr; or a link, and what it says. Login prompts read the one in /etc/issue.d.
ZSH=config/share/zsh/site-functions/_vfio-console-hook
FILES="all 755 hooks/command.py /usr/bin/vfio-console-hook
all 644 config/share/man/man8/vfio-console-hook.8
all 644 config/share/man/man5/vfio-console-hook.yaml.5
all 644 config/share/bash-completion/completions/vfio-console-hook
all 644 config/share/fish/vendor_completions.d/vfio-console-hook.fish
zsh 644 $ZSH
debian_zsh 644 $ZSH /usr/share/zsh/vendor-completions/${ZSH##*/}
all 644 hooks/vfio-console-hook.desktop /etc/xdg/autostart/vfio-console-hook.desktop
all link $RUN.status/issue $ISSUE
systemd 644 hooks/${UNIT##*/} $UNIT
systemd 644 hooks/${TAKE##*/} $TAKE
systemd link ../${UNIT##*/} $WITH_LIBVIRTD
systemd link ../${UNIT##*/} $WITH_VIRTQEMUD"

# --- what it is asked for ---------------------------------------------------------

usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

install_hook() {
    nothing='nothing was installed'
    may_change 'install into' 'use sudo, or set DESTDIR'
    # unRAID's users are told to set DESTDIR=/.
    [ -n "${DESTDIR-}" ] || check_host
    choose_files
    check_files
    check_python

    trap 'stop interrupted' HUP INT TERM
    stage_program
    stage_documents
    stage_config
    stage_file link "${program##*/}" "$LIB"
    for_each stage_file "$kinds"
    write_list made "$missing"
    write_list packages "$brought"
    place
    trap - HUP INT TERM
    remove_what_is_old

    say "vfio-console-hook is installed:
  program  $root$LIB
  command  $root/usr/bin/vfio-console-hook
  hook     $root$gate${daemon_gate:+
  hook     $root$daemon_gate}${systemd:+
  unit     $root$UNIT}
  manual   man vfio-console-hook, man vfio-console-hook.yaml
  config   $root$CONFIG$config_note"
    [ "$gate" = "$MAIN" ] || say "  the hook in $root$MAIN was left as it is"
    [ -z "$note" ] || say "  $note"
    [ -z "$root" ] || return 0
    # shellcheck disable=SC2086  # one word a path, and none that others have in these directories
    ! command -v restorecon >/dev/null || restorecon -R $missing $staged >/dev/null 2>&1 ||
        say "  restorecon failed: look at the SELinux labels"
    reload_systemd
    reload_daemon
    selinux_allow "$LIB"
}

remove_hook() {
    nothing='nothing was removed'
    may_change 'remove what is in' 'use sudo'
    removable || stop "$why" "$hint"
    nothing='not everything was removed'
    found=
    made=$(sort -r "$root$LIB/made" 2>/dev/null)  # inner ones first
    brought=$(sort -u "$root$LIB/packages" 2>/dev/null)
    # The gates go first: from then on no event looks for the program.
    { remove_gates '' '' && remove_links; } || stop "$why"
    for_each remove_file 'all zsh debian_zsh systemd'
    [ -z "$found" ] || reload_systemd
    # A failed unit stays in systemd's list without its file, until this.
    [ -n "$root" ] || [ ! -d /run/systemd/system ] ||
        systemctl reset-failed "${UNIT##*/}" 2>/dev/null
    ! same "$root$CONFIG" "$root$LIB/default.yaml" || rm -f "$root$CONFIG"
    for target in $GATES "$CONFIG" "$CONFIG.new" "$DOC"; do
        clear_beside "$target"
    done
    ! is_our_program || must 'cannot remove everything' rm -rf "$root$DOC" "$root$RUN" \
        "$root$RUN.status" "$root/var/lib/${RUN##*/}" "$root$LIB"
    rm -rf "$root$CONFIG.new" "$root$LIB".[0-9]* "$root${LIB%/*}/.new-${LIB##*/}"*
    for dir in "$ETC/vms" "$ETC" $made; do
        rmdir "$root$dir" 2>/dev/null
    done
    [ -n "$root" ] || selinux_forget
    outcome="is removed${root:+ from $root}"
    [ -n "$found" ] || outcome="is not installed${root:+ in $root}"
    say "vfio-console-hook $outcome"
    # shellcheck disable=SC2086  # one word a package
    [ -z "$brought" ] || say "  install.sh has installed these packages, which stay:" $brought
    [ ! -d "$root$ETC" ] || find "$root$ETC" -type f | sort |
        sed 's/^/  kept, because it is yours: /'
}

make_package() {
    nothing='no package was made'
    choose_python
    need_python
    exec "$PYTHON" -I -B "$here/config/packaging/build.py" "$@"
}

# Without lxml and PyYAML the demo makes a virtual environment, which needs a network.
show_demo() {
    cd "$here" || exit 1
    choose_python || [ "$(id -u)" != 0 ] || [ -e .venv ] ||
        bring 'lxml and PyYAML' 'lxml.etree, yaml' "$packages"
    need_python
    exec "$PYTHON" -B -m tests.demo
}

# --- looking, before anything is changed ------------------------------------------

may_change() {
    [ -n "$root" ] || [ "$(id -u)" = 0 ] || stop "only root can $1 /usr and /etc" "$2"
    [ ! -f "$root$LIB/package.sh" ] || stop "vfio-console-hook is installed as a package" \
        "upgrade or remove it with the package manager"
}

# Where /usr is not written by hand: what to do there. A kind of host is recognized by a file.
check_host() {
    package='make a package with ./install.sh --package rpm'
    while read -r file sentence && read -r advice; do
        [ ! -e "$file" ] || stop "$sentence" "$advice"
    done <<END
/etc/NIXOS NixOS has no /usr to install into, and its libvirt has hooks in /var/lib/libvirt/hooks
    make a derivation from DESTDIR=DIR ./install.sh, and name its gate in \
virtualisation.libvirtd.hooks.qemu
/run/current-system/profile/bin/guix Guix System has no /usr to install into
    make a package definition from DESTDIR=DIR ./install.sh
/etc/unraid-version unRAID has its system in memory, and what is installed is gone after a reboot
    run DESTDIR=/ ./install.sh in /boot/config/go, once Python, lxml and PyYAML are there
/run/ostree-booted the /usr of this host is an image (ostree, bootc)
    $package, and layer it with rpm-ostree install ./FILE, or install it in the image's \
Containerfile
END
    { true >/usr/.new-vfio-console-hook; } 2>/dev/null && rm /usr/.new-vfio-console-hook && return
    advice='install the package into the image that it comes from'
    ! command -v transactional-update >/dev/null ||
        advice="$package, and run transactional-update pkg install ./FILE"
    stop 'the /usr of this host is read-only' "$advice"
}

# Adds the gates to FILES, and sets kinds to the first words of the lines that this host gets.
choose_files() {
    look_at_dir "$HOOKS"
    choose_gate || stop "$why" "$hint"
    choose_daemon_gate
    FILES="$FILES
gate 755 hooks/qemu $gate${daemon_gate:+
gate 755 hooks/daemon $daemon_gate}"
    # A tree for packages or images may become a host with systemd.
    systemd=systemd
    [ -n "$root" ] || [ -d /run/systemd/system ] || [ -d "$UNITS" ] ||
        [ -d /lib/systemd/system ] || systemd=
    zsh=zsh other_zsh=debian_zsh
    [ ! -d "$root/usr/share/zsh/vendor-completions" ] || zsh=debian_zsh other_zsh=zsh
    kinds="all gate $zsh $systemd"
}

# Calls $1 with mode, source and target of the lines of FILES that begin with one of the words $2.
for_each() {
    while read -r kind mode from to; do
        case " $2 " in *" $kind "*) "$1" "$mode" "$from" "${to:-/usr/${from#config/}}" ;; esac
    done <<END
$FILES
END
}

# The directory of the program is a link, but that of the first versions.
is_our_program() {
    case $(readlink "$root$LIB") in "${LIB##*/}".[0-9]*) ;; *) [ -f "$root$LIB/made" ] ;; esac
}

check_files() {
    for_each check_file "$kinds"
    look_at_dir "$ETC/vms"
    [ ! -d "$root$CONFIG" ] || stop "$root$CONFIG is a directory"
    for dir in "$LIB" "$DOC"; do
        look_at_dir "${dir%/*}"
        ! is_there "$root$dir" || is_our_program || [ -z "$(ls -A "$root$dir")" ] || stop \
            "$root$dir is there and was not made by install.sh" "remove the package that brought it"
    done
}

# Files are installed where there is nothing or a file of ours, never over anything else.
check_file() {
    [ "$1" = link ] || [ -f "$here/$2" ] ||
        stop "$here/$2 is missing" "run install.sh from a complete clone"
    look_at_dir "${3%/*}"
    [ ! -d "$root$3" ] || stop "$root$3 is a directory"
    ! is_there "$root$3" || is_ours "$root$3" || stop "$root$3 is not ours"
}

# Is $1 a directory, or can it be made? Adds to missing what has to be made, inner ones first.
look_at_dir() {
    case "${1:-/} $missing" in "/ "* | *" $1 "*) return ;; esac
    if ! is_there "$root$1"; then
        look_at_dir "${1%/*}"
        missing=" $1$missing"
    elif [ ! -d "$root$1" ]; then
        stop "$root$1 is not a directory"
    fi
}

# --- Python and its libraries -----------------------------------------------------

can() {
    "$PYTHON" -I -c "$1" 2>/dev/null
}

is_new_enough() {
    can 'import sys; sys.exit(sys.version_info < (3, 9))'
}

need_python() {
    is_new_enough || stop 'there is no Python from 3.9 on in /usr/bin'
}

# The hook does not need libvirt's own module: that it cannot be had is worth a note.
check_python() {
    if [ -n "$root" ]; then
        is_new_enough || stop "$PYTHON is missing or older than Python 3.9"
        return
    elif ! choose_python; then
        [ -n "$packages" ] || need_python
        bring 'lxml and PyYAML' 'lxml.etree, yaml' "$packages" || stop \
            "cannot install lxml and PyYAML for $PYTHON: $(last_line)" "install them by hand \
(Debian: python3-lxml python3-yaml; Fedora: python3-lxml python3-pyyaml)"
        need_python
    fi
    [ -n "$(libvirt_version)" ] && [ "$PYTHON" = /usr/bin/python3 ] || return 0
    can 'import libvirt' || bring "libvirt's module" libvirt "$libvirt" ||
        say "  it cannot be installed: $(last_line)
  everything works without it but doctor's look at VMs, and plan wants --xml"
}

# Sets PYTHON to the first that has the libraries, of python3 and the newest of others. Fails if
# none has: then it is the first that is new enough, or can be installed (openSUSE Leap 15, SLES 15
# and EL8 have an old python3, and 3.11 beside it), and packages are what is missing for it.
choose_python() {
    choose_manager
    usable=
    for version in 3 3.20 3.19 3.18 3.17 3.16 3.15 3.14 3.13 3.12 3.11 3.10 3.9; do
        PYTHON=/usr/bin/python$version
        is_new_enough || continue
        ! can 'import lxml.etree, yaml' || return 0
        usable=${usable:-$PYTHON}
    done
    PYTHON=${usable:-/usr/bin/python3}
    [ -n "$usable" ] || [ ! -x "$PYTHON" ] || PYTHON=/usr/bin/python3.11
    name=${PYTHON##*/}
    packages=
    case $manager:$name in
        :*) ;;
        *:python3) packages="$python $lxml $yaml" ;;
        dnf:*) packages="$name $name-lxml $name-pyyaml" ;;
        zypper:*)
            name=python3${name#python3.}
            packages="$name $name-lxml $name-PyYAML" ;;
    esac
    [ ! -x "$PYTHON" ] || packages=${packages#* }
    return 1
}

# Sets manager to the package manager of this host, or all to nothing: what its distribution calls
# Python and the modules, and how it installs packages.
choose_manager() {
    while read -r manager python lxml yaml libvirt how; do
        ! command -v "$manager" >/dev/null || return 0
    done <<END
apt-get python3 python3-lxml python3-yaml python3-libvirt install -y --no-install-recommends
dnf python3 python3-lxml python3-pyyaml python3-libvirt install -y
zypper python3 python3-lxml python3-PyYAML python3-libvirt-python --non-interactive install
pacman python python-lxml python-yaml libvirt-python -S --noconfirm --needed
apk python3 py3-lxml py3-yaml py3-libvirt add
xbps-install python3 python3-lxml python3-yaml libvirt-python3 -Sy
END
}

# Installs packages $3, which have modules $2. Sets output to what was printed.
bring() {
    say "installing $1 for $PYTHON with the package manager of this host"
    output='no package for it is known here'
    [ -n "$3" ] || return
    export DEBIAN_FRONTEND=noninteractive
    install="$manager $how $3"
    # shellcheck disable=SC2086  # one word an option, and a package
    output=$({ $install || { [ "$manager" = apt-get ] && apt-get update && $install; }; } 2>&1) ||
        return
    brought="$brought $3"
    nothing="of vfio-console-hook nothing was installed, but these packages were:$brought"
    output=$("$PYTHON" -I -c "import $2" 2>&1)
}

# --- preparing everything beside its target ---------------------------------------

# Removes what an installation that was killed has left beside target $1, which is called $new.
clear_beside() {
    new=$root$(beside "$1")
    rm -rf "$new" "$new.old"
}

# Makes way for what is prepared for target $1, whose name is in $new.
stage() {
    must "cannot make the directory $root${1%/*}" mkdir -p "$root${1%/*}"
    clear_beside "$1"
    staged="$staged $1"
    unstaged="$1 $unstaged"
}

# Prepares a copy of file $2 of the clone with mode $1, or a link that says $2, for target $3. The
# links never change: those that are there already stay.
stage_file() {
    [ "$1" != link ] || ! is_ours "$root$3" || return 0
    stage "$3"
    if [ "$1" = link ]; then
        must "cannot make the link $new" ln -s "$2" "$new"
    else
        copy "$1" "$2" "$new"
    fi
}

# Copies file $2 of the clone to $3, with mode $1. A carriage return at the end of the first line
# of a script would keep every VM from starting; gate and command name the Python that was chosen;
# what is only in the source is neither named nor linked in the documents.
copy() {
    output=$({ sed -e "s/$(printf '\r')\$//" -e "s|^PYTHON=/usr/bin/python3\$|PYTHON=$PYTHON|" \
        -e "1s|^#!/usr/bin/python3 |#!$PYTHON |" -e '/^<!-- only in the source/,/^<!-- end/d' \
        -e 's|](config/default.yaml)|](/etc/vfio-console-hook/default.yaml)|g' \
        -e 's|](config/|](examples/|g' "$here/$2" >"$3" && chmod "$1" "$3"; } 2>&1) ||
        stop "cannot write $3: ${output##*: }"
}

# The package, its bytecode, the launcher, the module for SELinux and the configuration as shipped.
stage_program() {
    number=1
    while is_there "$root$LIB.$number"; do
        number=$((number + 1))
    done
    program=$LIB.$number
    stage "$program"
    lib=$new
    must "cannot write $lib" mkdir "$lib"
    must "cannot write $lib" cp -R "$here/vfio_console_hook" "$here/config/default.yaml" \
        "$here/config/selinux/$SELINUX_MODULE.cil" "$lib"
    find "$lib" -name __pycache__ -prune -exec rm -rf {} +
    chmod -R u=rwX,go=rX "$lib"
    copy 644 hooks/launch.py "$lib/hook"
    copy 644 hooks/setup.sh "$lib/setup.sh"
    output=$("$PYTHON" -I -m compileall -q -d "$program" "$lib" 2>&1) ||
        stop "cannot compile the program: $(last_line)"
    output=$(cd "$lib" &&
        "$PYTHON" -EsB -c 'import vfio_console_hook.hook, vfio_console_hook.cli' 2>&1) ||
        stop "the program does not load here: $(last_line)"
}

stage_documents() {
    stage "$DOC"
    doc=$new
    must "cannot write $doc" mkdir "$doc" "$doc/examples"
    must "cannot write $doc" cp "$here"/config/*.* "$doc/examples"
    rm -f "$doc/examples/default.yaml"
    chmod -R u=rwX,go=rX "$doc"
    for file in README.md NEWS.md LICENSE; do
        copy 644 "$file" "$doc/$file"
    done
}

# default.yaml, by dpkg's rule: a changed file stays, and so does a removed one; what is
# shipped now is put beside it if it is not what was shipped before.
stage_config() {
    shipped=$here/config/default.yaml
    before=$root$LIB/default.yaml
    config_note=
    if [ ! -e "$root$CONFIG" ] && [ -f "$before" ] && [ -d "$root$ETC" ]; then
        config_note=' (was removed, and is not put back)'
    elif [ ! -e "$root$CONFIG" ] || same "$root$CONFIG" "$before"; then
        stage_file 644 config/default.yaml "$CONFIG"
    elif same "$root$CONFIG" "$shipped" || same "$before" "$shipped"; then
        config_note=' (kept)'
    else
        stage_file 644 config/default.yaml "$CONFIG.new"
        config_note=' (yours was kept; the new one is beside it as default.yaml.new)'
    fi
    must "cannot make the directory $root$ETC/vms" mkdir -p "$root$ETC/vms"
}

# Adds the words $2 to list $1, for an uninstallation.
write_list() {
    { cat "$root$LIB/$1" 2>/dev/null; for word in $2; do say "$word"; done; } |
        sort -u >"$lib/$1" || stop "cannot write $lib/$1"
}

# --- everything or nothing --------------------------------------------------------

nothing='nothing was changed'  # the end of a sentence that refuses
brought=                       # the packages that it has installed
missing=' '                    # the directories that it makes, inner ones first
staged=                        # the targets beside which something is prepared, in order
unstaged=                      # the same, the last one first
placing=                       # set as soon as they are put into place

# Puts what was staged into place. A file or a link is replaced in one step, so that libvirt never
# misses the gate, nor the gate the program; a directory in two.
place() {
    placing=yes
    for target in $staged; do
        new=$root$(beside "$target")
        target=$root$target
        if [ -d "$target" ] && [ ! -L "$target" ]; then
            must "cannot replace $target" mv "$target" "$new.old"
        elif is_there "$target"; then
            must "cannot save $target" cp -pP "$target" "$new.old"
        fi
        # Without -T it would go into the directory that a link leads to.
        must "cannot replace $target" mv -fT "$new" "$target"
    done
}

# Runs a command; if it fails, stops with what could not be done, $1, and the command's reason.
must() {
    what=$1
    shift
    output=$("$@" 2>&1) || stop "$what: ${output##*: }"
}

# One sentence, which says at its end what is the state now, and, if $2 is given, what to try.
stop() {
    trap - EXIT HUP INT TERM
    for target in $unstaged; do
        new=$root$(beside "$target")
        target=$root$target
        # What is no longer beside its target is in its place.
        [ -z "$placing" ] || is_there "$new" || rm -rf "$target"
        is_there "$target" || ! is_there "$new.old" || mv "$new.old" "$target"
        rm -rf "$new" "$new.old"
    done
    for dir in $missing; do
        rmdir "$root$dir" 2>/dev/null
    done
    printf 'install.sh: %s; %s\n' "$1" "$nothing" >&2
    [ -z "${2-}" ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

# Removes old versions, except those that a process still runs from, a default.yaml.new that is no
# news any more, and what is elsewhere now.
remove_what_is_old() {
    for target in $staged; do
        rm -rf "$root$(beside "$target").old"
    done
    for other in "$root$LIB".[0-9]*; do
        [ "$other" = "$root$program" ] || [ -n "$(running_from "$other")" ] || rm -rf "$other"
    done
    same "$root$CONFIG.new" "$root$LIB/default.yaml" || rm -f "$root$CONFIG.new"
    remove_gates "$gate" "$daemon_gate"
    for_each remove_file "$other_zsh"
}

remove_file() {
    clear_beside "$3"
    ! is_ours "$root$3" || remove "$root$3" || stop "$why"
}

case $#:${1-}:${2-} in
    0::) install_hook ;;
    1:--uninstall:) remove_hook ;;
    [23]:--package:deb | [23]:--package:rpm | [23]:--package:arch)
        shift
        make_package "$@" ;;
    1:--demo:) show_demo ;;
    1:--help: | 1:-h:) usage ;;
    *)
        usage >&2
        exit 2 ;;
esac
