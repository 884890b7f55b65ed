#!/bin/sh
# Installs vfio-console-hook on this host, removes it, makes a package of it, or shows it at work.
#
# Everything is written beside its target first and put into place by rename; if
# anything fails, what was there before is put back. DESTDIR is for packagers: the
# tree below it is filled, and neither packages nor daemons of this host are touched.

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

# Where it is not new enough, choose_python takes another one.
PYTHON=/usr/bin/python3

# What is installed beside the program, its documents and the gate: mode, where it is in the
# clone, and where on the host. Each has a line by which it is recognized (is_our_file).
FILES="755 hooks/command.py /usr/bin/vfio-console-hook
644 config/share/man/man8/vfio-console-hook.8 $SHARE/man/man8/vfio-console-hook.8
644 config/share/man/man5/vfio-console-hook.yaml.5 $SHARE/man/man5/vfio-console-hook.yaml.5
644 config/share/bash-completion/completions/vfio-console-hook $SHARE/bash-completion/completions/vfio-console-hook
644 config/share/fish/vendor_completions.d/vfio-console-hook.fish $SHARE/fish/vendor_completions.d/vfio-console-hook.fish
644 hooks/vfio-console-hook.desktop /etc/xdg/autostart/vfio-console-hook.desktop"
UNIT_FILES="644 hooks/${UNIT##*/} $UNIT
644 hooks/${TAKE##*/} $TAKE"
ZSH_FILE='644 config/share/zsh/site-functions/_vfio-console-hook'
# Debian's zsh reads another directory than all others.
ZSH=$SHARE/zsh/site-functions/_vfio-console-hook
ZSH_DEBIAN=$SHARE/zsh/vendor-completions/_vfio-console-hook
# Links, and what they say: one that login prompts read, which leads nowhere as long as there is
# no refusal to show, and those by which the unit starts with libvirt's daemons.
LINKS="$ISSUE $RUN.status/issue"
UNIT_LINKS="$WITH_LIBVIRTD ../${UNIT##*/}
$WITH_VIRTQEMUD ../${UNIT##*/}"
# The command, a unit, and all others.
COMMAND_MARK='^"""The command vfio-console-hook'
SHARED_MARK='vfio-console-hook: installed by install.sh$'

usage() {
    cat <<'END'
usage: ./install.sh              install, or upgrade what is installed
       ./install.sh --uninstall  remove what was installed; changed configuration is kept
       ./install.sh --package deb|rpm|arch [DIR]
                                 make a package in DIR, or here; no root needed
       ./install.sh --demo       show the program at work on an embedded machine; no root needed

DESTDIR=DIR ./install.sh installs below DIR, for packages and images.
END
}

# --- leaving: everything or nothing -----------------------------------------------

nothing='nothing was changed'  # the end of a sentence that refuses
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

# One sentence, which says at its end what is the state now, and, if $2 is given, what to try.
stop() {
    trap - EXIT HUP INT TERM
    undo
    printf 'install.sh: %s; %s\n' "$1" "$nothing" >&2
    [ -z "${2-}" ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

# --- writing ----------------------------------------------------------------------

# Makes directory $1 and what is missing above it, and remembers what it made.
make_dir() {
    [ ! -d "$1" ] || return 0
    case $1 in */*) [ "${1%/*}" = '' ] || make_dir "${1%/*}" ;; esac
    reason=$(mkdir "$1" 2>&1) || stop "cannot make the directory $1: ${reason##*: }"
    created="$created
$1"
}

# Removes what is beside target $1 from an installation that was killed. Its name is in $new.
clear_beside() {
    new=$(beside "$1")
    rm -rf "$new" "$new.old"
}

# Begins a staged file or directory for target $1; its name is in $new.
stage() {
    make_dir "${1%/*}"
    clear_beside "$1"
    staged="$staged
$1"
}

# Copies file $1 to $2, with mode $3. A carriage return at the end of the first line of a script
# would keep every VM from starting. The gate and the command name the Python that was chosen.
copy() {
    reason=$({ sed -e "s/$(printf '\r')\$//" -e "s|^PYTHON=/usr/bin/python3\$|PYTHON=$PYTHON|" \
        -e "1s|^#!/usr/bin/python3 |#!$PYTHON |" "$1" >"$2" && chmod "$3" "$2"; } 2>&1) ||
        stop "cannot write $2: ${reason##*: }"
}

# Stages a copy of file $1 for target $2, with mode $3.
stage_file() {
    stage "$2"
    copy "$1" "$new" "$3"
}

# Stages a link for target $1 that says $2.
stage_link() {
    stage "$1"
    reason=$(ln -s "$2" "$new" 2>&1) || stop "cannot make the link $new: ${reason##*: }"
}

# Puts what was staged for target $1 into place. A file or a link is replaced in one step, so
# that libvirt never misses the gate, nor the gate the program; a directory in two.
place() {
    new=$(beside "$1")
    old=$new.old
    if [ -d "$1" ] && [ ! -L "$1" ]; then
        mv "$1" "$old" 2>/dev/null || stop "cannot replace $1"
    elif is_there "$1"; then
        cp -pP "$1" "$old" 2>/dev/null || stop "cannot save $1"
    fi
    # Without -T it would go into the directory that a link leads to.
    reason=$(mv -fT "$new" "$1" 2>&1) || stop "cannot replace $1: ${reason##*: }"
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

# --- looking ----------------------------------------------------------------------

is_our_program() {
    case $(readlink "$root$LIB") in "${LIB##*/}".[0-9]*) ;; *) false ;; esac
}

is_our_file() {
    ours "$1" "$COMMAND_MARK" || ours "$1" "$UNIT_MARK" || ours "$1" "$SHARED_MARK"
}

# Files are installed where there is nothing or a file of ours, never over anything else.
check_file() {
    [ ! -d "$1" ] || stop "$1 is a directory"
    ! is_there "$1" || is_our_file "$1" || stop "$1 is not ours"
}

check_dir() {
    [ -d "$1" ] || ! is_there "$1" || stop "$1 is not a directory"
}

# Is this a host with systemd? A tree for packages or images may become one.
has_systemd() {
    [ -n "$root" ] || [ -d /run/systemd/system ] || [ -d "$UNITS" ] || [ -d /lib/systemd/system ]
}

# Sets files and links to what of FILES and LINKS goes onto this host.
choose_files() {
    zsh=$ZSH
    [ ! -d "$root${ZSH_DEBIAN%/*}" ] || zsh=$ZSH_DEBIAN
    files="$FILES
$ZSH_FILE $zsh"
    links=$LINKS
    ! has_systemd || files="$files
$UNIT_FILES" links="$links
$UNIT_LINKS"
}

# Is the clone complete, and nothing in the way of what goes onto the host?
check_files() {
    choose_files
    for file in hooks/qemu hooks/daemon hooks/launch.py hooks/setup.sh config/default.yaml \
        "config/selinux/$SELINUX_MODULE.cil" vfio_console_hook/__init__.py; do
        check_source "$file"
    done
    while read -r _ from to; do
        check_source "$from"
        check_dir "$root${to%/*}"
        check_file "$root$to"
    done <<END
$files
END
    while read -r link _; do
        check_dir "$root${link%/*}"
        ! is_there "$root$link" || is_our_link "$root$link" || stop "$root$link is not ours"
    done <<END
$links
END
    [ ! -d "$root$ETC/default.yaml" ] || stop "$root$ETC/default.yaml is a directory"
    is_our_program || check_dir "$root$LIB"
    for dir in "$DOC" "$ETC" "$ETC/vms"; do
        check_dir "$root$dir"
    done
    for dir in "$LIB" "$DOC"; do
        [ ! -d "$root$dir" ] || [ -f "$root$LIB/made" ] || rmdir "$root$dir" 2>/dev/null ||
            stop "$root$dir is there and was not made by install.sh" "remove the package that brought it"
    done
}

check_source() {
    [ -f "$here/$1" ] || stop "$here/$1 is missing" "run install.sh from a complete clone"
}

# What a package has installed is the package manager's.
check_package() {
    [ ! -f "$root$LIB/package.sh" ] ||
        stop "vfio-console-hook is installed as a package" "upgrade or remove it with the package manager"
}

# On a host whose /usr is not written by hand: what to do there, in one sentence.
check_host() {
    layer='make a package with ./install.sh --package rpm'
    if [ -e /etc/NIXOS ]; then
        stop 'NixOS has no /usr to install into, and its libvirt looks for hooks in /var/lib/libvirt/hooks' \
            'make a derivation from DESTDIR=DIR ./install.sh, and name its gate in virtualisation.libvirtd.hooks.qemu'
    elif [ -e /run/current-system/profile/bin/guix ]; then
        stop 'Guix System has no /usr to install into' 'make a package definition from DESTDIR=DIR ./install.sh'
    elif [ -e /etc/unraid-version ]; then
        stop 'unRAID has its system in memory, and what is installed is gone after a reboot' \
            'run DESTDIR=/ ./install.sh in /boot/config/go, once Python, lxml and PyYAML are there'
    elif [ -e /run/ostree-booted ]; then
        stop 'the /usr of this host is an image (ostree, bootc)' \
            "$layer, and layer it with rpm-ostree install ./FILE, or install it in the image's Containerfile"
    elif ! { true >/usr/.new-vfio-console-hook; } 2>/dev/null; then
        ! command -v transactional-update >/dev/null || stop 'the /usr of this host is read-only' \
            "$layer, and run transactional-update pkg install ./FILE"
        stop 'the /usr of this host is read-only' 'install the package into the image that it comes from'
    fi
    rm -f /usr/.new-vfio-console-hook
}

# --- Python and its libraries -----------------------------------------------------

python_is_new_enough() {
    "$PYTHON" -I -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null
}

python_has() {
    "$PYTHON" -I -c "import $1" 2>/dev/null
}

# Sets manager to the package manager of this host, or to nothing, and the others to what its
# distribution calls Python and the modules.
choose_manager() {
    while read -r manager python lxml yaml libvirt; do
        ! command -v "$manager" >/dev/null || return 0
    done <<END
apt-get python3 python3-lxml python3-yaml python3-libvirt
dnf python3 python3-lxml python3-pyyaml python3-libvirt
zypper python3 python3-lxml python3-PyYAML python3-libvirt-python
pacman python python-lxml python-yaml libvirt-python
apk python3 py3-lxml py3-yaml py3-libvirt
xbps-install python3 python3-lxml python3-yaml libvirt-python3
END
}

# Installs packages, and sets output to what the package manager has printed.
install_packages() {
    case $manager in
        apt-get)
            set -- apt-get install -y --no-install-recommends "$@"
            export DEBIAN_FRONTEND=noninteractive
            output=$("$@" 2>&1) || output=$({ apt-get update && "$@"; } 2>&1) ;;
        dnf | xbps-install) output=$("$manager" install -y "$@" 2>&1) ;;
        zypper) output=$(zypper --non-interactive install "$@" 2>&1) ;;
        pacman) output=$(pacman -S --noconfirm --needed "$@" 2>&1) ;;
        apk) output=$(apk add "$@" 2>&1) ;;
        *) output='no known package manager'; false ;;
    esac
}

# Sets PYTHON to the one that the hook will run with: the first that has the libraries, of
# python3 and the newest of others; or else the first that is new enough. Sets packages to
# what is missing for it, as this host's distribution calls it.
choose_python() {
    usable=
    packages=
    minor=20
    PYTHON=/usr/bin/python3
    while [ "$minor" -ge 9 ]; do
        if [ -x "$PYTHON" ] && python_is_new_enough; then
            ! python_has 'lxml.etree, yaml' || return 0
            usable=${usable:-$PYTHON}
        fi
        minor=$((minor - 1))
        PYTHON=/usr/bin/python3.$minor
    done
    PYTHON=/usr/bin/python3
    choose_manager
    # openSUSE Leap 15, SLES 15 and EL8 have an old one, and this one beside it.
    if [ -n "$usable" ]; then PYTHON=$usable; elif [ -x "$PYTHON" ]; then PYTHON=/usr/bin/python3.11; fi
    name=${PYTHON##*/}
    case $manager:$name in
        ?*:python3) packages="$python $lxml $yaml" ;;
        dnf:*) packages="$name $name-lxml $name-pyyaml" ;;
        zypper:*)
            name=python3${name#python3.}
            packages="$name $name-lxml $name-PyYAML" ;;
    esac
    [ ! -x "$PYTHON" ] || packages=${packages#* }
}

BY_HAND='by hand (Debian: python3-lxml python3-yaml; Fedora: python3-lxml python3-pyyaml)'
# What was installed for lxml and PyYAML, for an uninstallation.
brought=

# The last line of output is reported: of the package manager, or else of Python.
install_libraries() {
    say "installing lxml and PyYAML for $PYTHON with the package manager of this host"
    # shellcheck disable=SC2086  # one word a package
    install_packages $packages || return
    brought=$packages
    nothing="of vfio-console-hook nothing was installed, but these packages were: $packages"
    output=$("$PYTHON" -I -c 'import lxml.etree, yaml' 2>&1)
}

check_python() {
    if [ -n "$root" ]; then
        [ -x "$PYTHON" ] || stop "there is no $PYTHON"
        python_is_new_enough || stop "$PYTHON is older than Python 3.9"
        return
    fi
    choose_python
    python_has 'lxml.etree, yaml' && return
    [ -n "$packages" ] || [ -z "$manager" ] || stop "there is no Python from 3.9 on in /usr/bin"
    install_libraries || stop \
        "cannot install lxml and PyYAML for $PYTHON: $(printf '%s' "$output" | tail -n 1)" \
        "install them $BY_HAND"
    python_is_new_enough || stop "$PYTHON is older than Python 3.9"
}

# libvirt's own module for Python, where libvirt is. The hook does not need it, so that it
# cannot be had is worth a note and nothing more.
recommend_libvirt() {
    [ -n "$(libvirt_version)" ] && [ "$PYTHON" = /usr/bin/python3 ] && ! python_has libvirt || return 0
    say "  installing libvirt's module for $PYTHON, with which plan and doctor ask for VMs"
    choose_manager
    install_packages "$libvirt"
    if python_has libvirt; then
        say "$libvirt" >>"$LIB/packages"
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
        cp "$here/config/default.yaml" "$here/config/selinux/$SELINUX_MODULE.cil" "$lib/"; } 2>&1) ||
        stop "cannot write $lib: ${reason##*: }"
    find "$lib" -name __pycache__ -prune -exec rm -rf {} +
    chmod -R u=rwX,go=rX "$lib"
    copy "$here/hooks/launch.py" "$lib/hook" 644
    copy "$here/hooks/setup.sh" "$lib/setup.sh" 644
    reason=$("$PYTHON" -I -m compileall -q -d "$program" "$lib" 2>&1) ||
        stop "cannot compile the program: $(printf '%s' "$reason" | tail -n 1)"
    reason=$("$PYTHON" -I -B -c 'import sys
sys.path.insert(0, sys.argv[1])
import vfio_console_hook.hook, vfio_console_hook.cli' "$lib" 2>&1) ||
        stop "the program does not load here: $(printf '%s' "$reason" | tail -n 1)"
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
    reason=$(mkdir "$doc" "$doc/examples" 2>&1) || stop "cannot make $doc: ${reason##*: }"
    for file in README.md NEWS.md LICENSE; do
        # What is only in the source is neither named nor linked here.
        [ ! -f "$here/$file" ] || reason=$(sed -e '/^<!-- only in the source/,/^<!-- end/d' \
            -e 's|](config/default.yaml)|](/etc/vfio-console-hook/default.yaml)|g' \
            -e 's|](config/|](examples/|g' "$here/$file" 2>&1 >"$doc/$file") ||
            stop "cannot write $doc/$file: ${reason##*: }"
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
stage_files() {
    while read -r mode from to; do
        stage_file "$here/$from" "$root$to" "$mode"
    done <<END
$files
END
    while read -r link says; do
        is_our_link "$root$link" || stage_link "$root$link" "$says"
    done <<END
$links
END
}

# What an uninstallation cannot know otherwise: the packages and directories that were not there.
write_manifest() {
    {
        [ ! -f "$root$LIB/packages" ] || cat "$root$LIB/packages"
        [ -z "$brought" ] || say "$brought"
    } >"$lib/packages" || stop "cannot write $lib/packages"
    {
        [ ! -f "$root$LIB/made" ] || cat "$root$LIB/made"
        printf '%s\n' "$created" | while IFS= read -r dir; do
            [ -z "$dir" ] || printf '%s\n' "${dir#"$root"}"
        done
    } >"$lib/made" || stop "cannot write $lib/made"
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
    nothing='nothing was installed'
    if [ -z "$root" ]; then
        [ "$(id -u)" = 0 ] || stop "only root can install into /usr and /etc" "use sudo, or set DESTDIR"
        # It tells unRAID's to set DESTDIR=/.
        [ -n "${DESTDIR-}" ] || check_host
    fi
    check_package
    choose_gate || stop "$why" "$hint"
    choose_daemon_gate
    check_files
    check_python

    trap 'stop interrupted' HUP INT TERM
    stage_program
    stage_documents
    stage_config
    stage_files
    stage_link "$root$LIB" "${program##*/}"
    stage_file "$here/hooks/qemu" "$root$gate" 755
    [ -z "$daemon_gate" ] || stage_file "$here/hooks/daemon" "$root$daemon_gate" 755
    write_manifest

    place_all
    trap - HUP INT TERM
    backwards "$placed" | while IFS= read -r target; do
        rm -rf "$(beside "$target").old"
    done
    remove_other_programs
    # A default.yaml.new of an earlier version that is no news any more.
    same "$root$ETC/default.yaml.new" "$root$LIB/default.yaml" || rm -f "$root$ETC/default.yaml.new"
    remove_gates "$gate" "$daemon_gate"
    for other in "$ZSH" "$ZSH_DEBIAN"; do
        [ "$other" = "$zsh" ] || ! ours "$root$other" "$SHARED_MARK" || rm -f "$root$other"
    done

    say "vfio-console-hook is installed:"
    say "  program  $root$LIB"
    say "  command  $root/usr/bin/vfio-console-hook"
    say "  hook     $root$gate"
    [ -z "$daemon_gate" ] || say "  hook     $root$daemon_gate"
    ! has_systemd || say "  unit     $root$UNIT"
    say "  manual   man vfio-console-hook, man vfio-console-hook.yaml"
    say "  config   $root$ETC/default.yaml$config_note"
    [ "$gate" = "$MAIN" ] || say "  the hook in $root$MAIN was left as it is"
    [ -z "$note" ] || say "  $note"
    [ -z "$root" ] || return 0
    set_labels
    ! has_systemd || reload_systemd
    reload_daemon
    selinux_allow "$LIB"
    recommend_libvirt
}

# --- uninstall --------------------------------------------------------------------

# Removes the units and their links, and sets found if there was something of them.
remove_units() {
    before=$found
    found=
    remove_links || stop "$why"
    for unit in "$root$UNIT" "$root$TAKE"; do
        if ours "$unit" "$UNIT_MARK" && [ ! -L "$unit" ]; then
            rm -f "$unit" || stop "cannot remove $unit"
            found=yes
        fi
    done
    if [ -n "$found" ]; then
        reload_systemd
        # A failed unit stays in systemd's list without its file, until this.
        [ -n "$root" ] || [ ! -d /run/systemd/system ] || systemctl reset-failed "${UNIT##*/}" 2>/dev/null
    fi
    found=$found$before
}

remove_hook() {
    nothing='nothing was removed'
    [ -n "$root" ] || [ "$(id -u)" = 0 ] || stop "only root can remove what is in /usr and /etc" "use sudo"
    check_package
    removable || stop "$why" "$hint"
    nothing='not everything was removed'
    # The gate goes first: from then on no event looks for the program.
    found=
    remove_gates '' '' || stop "$why"
    remove_units
    ! is_our_link "$root$ISSUE" || rm -f "$root$ISSUE"
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
    for target in "$MAIN" "$DROPIN" "$CHAINED" "$DAEMON" "$DAEMON_DROPIN" "$WITH_LIBVIRTD" \
        "$WITH_VIRTQEMUD" "$ISSUE" "$ETC/default.yaml" "$ETC/default.yaml.new" "$LIB" "$DOC"; do
        clear_beside "$root$target"
    done
    while read -r _ _ to; do
        clear_beside "$root$to"
        ! is_our_file "$root$to" || rm -f "$root$to"
    done <<END
$FILES
$UNIT_FILES
$ZSH_FILE $ZSH
$ZSH_FILE $ZSH_DEBIAN
END
    reason=$(rm -rf "$root$DOC" "$root$RUN" "$root$RUN.status" "$root/var/lib/${RUN##*/}" "$root$LIB" "$root$LIB".[0-9]* 2>&1) ||
        stop "cannot remove everything: ${reason#*: }"
    rmdir "$root$ETC/vms" "$root$ETC" 2>/dev/null
    backwards "$made" | while IFS= read -r dir; do
        rmdir "$root$dir" 2>/dev/null
    done
    [ -n "$root" ] || selinux_forget
    say "vfio-console-hook is removed${root:+ from $root}"
    # shellcheck disable=SC2046,SC2086  # one word a package
    [ -z "$brought" ] || say "  install.sh has installed these packages, which stay:" $(printf '%s\n' $brought | sort -u)
    [ ! -d "$root$ETC" ] || find "$root$ETC" -type f | sort | while IFS= read -r file; do
        say "  kept, because it is yours: $file"
    done
}

# --- package and demo -------------------------------------------------------------

make_package() {
    nothing='no package was made'
    choose_python
    python_is_new_enough || stop "there is no Python from 3.9 on"
    exec "$PYTHON" -I -B "$here/config/packaging/build.py" "$@"
}

# With a Python that has lxml and PyYAML: one of the host, with the distribution's packages,
# or else a virtual environment in the clone, which needs a network.
show_demo() {
    cd "$here" || exit 1
    choose_python
    start_demo
    found=$PYTHON
    venv=$here/.venv
    PYTHON=$venv/bin/python
    start_demo
    PYTHON=$found
    if [ "$(id -u)" = 0 ] && [ -n "$packages" ] && install_libraries; then
        start_demo
    fi
    nothing='nothing was changed'
    python_is_new_enough || stop "the demo needs Python 3.9 or later"
    say "making a virtual environment in $venv"
    reason=$({ "$PYTHON" -m venv --clear "$venv" && "$venv/bin/python" -m pip install --quiet lxml PyYAML; } 2>&1) ||
        stop "cannot make a virtual environment with lxml and PyYAML in $venv: $(printf '%s' "$reason" | tail -n 1)" \
            "install lxml and PyYAML for $PYTHON $BY_HAND"
    PYTHON=$venv/bin/python
    start_demo
}

# Becomes the demo, if PYTHON is able to.
start_demo() {
    ! python_is_new_enough || ! python_has 'lxml.etree, yaml' || exec "$PYTHON" -B -m tests.demo
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
