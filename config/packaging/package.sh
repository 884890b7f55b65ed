# shellcheck shell=sh disable=SC2034  # what reads this file uses what it sets
# vfio-console-hook: what the scripts of its packages do when it is installed or removed.
#
# Read with `.` and not run. In the package this file and the gates lie beside the program. The
# gates are placed by configure, and are no files of the package: where they go depends on
# this host's other hooks, libvirt and init; dpkg would ask about it, and keep it without its program;
# and while it unpacks libvirt would run the old and the new one in qemu.d.

PACKAGE=/usr/lib/vfio-console-hook.@VERSION@
IDLE_S=90  # how long an upgrade waits for a hook that is at work; its own deadline is shorter
PYTHON=/usr/bin/python3
root=
umask 022
# shellcheck source=hooks/setup.sh
. "$PACKAGE/setup.sh"

# The bytecode, of which the package has none, as it fits one Python only. Two builds of one
# version may have sources of the same time and size, so all of it is made anew.
compile() {
    "$PYTHON" -I -m compileall -qf "$PACKAGE" >/dev/null || say "  $PACKAGE cannot be compiled"
}

forget_compiled() {
    find "$PACKAGE" -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
}

# Waits until no hook runs from this version, which is about to be removed.
wait_until_idle() {
    seconds=0
    while [ "$seconds" -lt "$IDLE_S" ] && [ -n "$(running_from "$PACKAGE")" ]; do
        sleep 1
        seconds=$((seconds + 1))
    done
}

# Removes what install.sh has installed and this package does not have.
take_over() {
    for old in "$LIB".[0-9]*; do
        if [ ! -f "$old/made" ] || [ -n "$(running_from "$old")" ]; then
            continue
        fi
        for link in "$WITH_LIBVIRTD" "$WITH_VIRTQEMUD"; do
            ! is_ours "$link" || rm -f "$link"
        done
        for page in man8/vfio-console-hook.8 man5/vfio-console-hook.yaml.5; do
            [ ! -f "/usr/share/man/$page.gz" ] || rm -f "/usr/share/man/$page"
        done
        # The .deb has these elsewhere.
        if [ -f "$DOC/copyright" ]; then
            rm -f "/usr/share/zsh/site-functions/_vfio-console-hook" "$DOC/LICENSE" "$DOC/NEWS.md"
        else
            rm -f "/usr/share/zsh/vendor-completions/_vfio-console-hook" "$DOC/LICENSE"
        fi
        # rpm keeps any configuration that was there, and cannot know that it is unchanged.
        entry=/etc/xdg/autostart/vfio-console-hook.desktop
        [ ! -f "$entry.rpmnew" ] || mv -f "$entry.rpmnew" "$entry"
        if [ -f "$ETC/default.yaml.rpmnew" ] && same "$ETC/default.yaml" "$old/default.yaml"; then
            mv -f "$ETC/default.yaml.rpmnew" "$ETC/default.yaml"
        fi
        rm -f "$ETC/default.yaml.new"
        made=$(sort -r "$old/made")  # inner ones first
        rm -rf "$old"
        # Those below ETC are the package's now.
        for dir in $made; do
            case $dir in "$ETC"*) ;; *) rmdir "$dir" 2>/dev/null || true ;; esac
        done
    done
}

# Places file $1 of the package as gate $2.
place_gate() {
    mkdir -p "${2%/*}" 2>/dev/null
    if ! same "$PACKAGE/$1" "$2" || [ ! -x "$2" ]; then
        new=$(beside "$2")
        output=$({ cp "$PACKAGE/$1" "$new" && chmod 755 "$new" && mv -fT "$new" "$2"; } 2>&1) ||
            refuse "cannot write $2: ${output##*: }" || return
    fi
    ! command -v restorecon >/dev/null || restorecon "${2%/*}" "$2" >/dev/null 2>&1 || true
}

place_gates() {
    choose_gate && place_gate gate "$gate" || return
    choose_daemon_gate
    [ -z "$daemon_gate" ] || place_gate daemon-gate "$daemon_gate" || return
    [ -z "$note" ] || say "vfio-console-hook: $note"
    remove_gates "$gate" "$daemon_gate"
}

# Makes this host ready for the first VM. $1 is "first" unless another version was there.
# A hook that cannot be placed is no reason to leave a package half installed: doctor says it, too.
configure() {
    take_over
    compile
    if ! place_gates; then
        say "vfio-console-hook: $why; libvirt does not call it yet"
        [ -z "$hint" ] || say "hint: $hint"
    fi
    if [ "$1" = first ] && command -v systemctl >/dev/null; then
        systemctl --no-reload preset "${UNIT##*/}" >/dev/null 2>&1 ||
            say "  ${UNIT##*/} was not enabled: run systemctl preset ${UNIT##*/}"
    fi
    reload_systemd
    reload_daemon
    selinux_allow "$PACKAGE"
}

# The reverse, while the files of the package are still there; nothing if a VM holds a GPU.
deconfigure() {
    if ! removable; then
        printf 'vfio-console-hook: %s; nothing was removed\nhint: %s\n' "$why" "$hint" >&2
        return 1
    fi
    remove_gates '' ''
    remove_links
    rmdir "${DROPIN%/*}" "${DAEMON_DROPIN%/*}" 2>/dev/null || true
    # libvirt's own packages have these directories.
    [ -n "$(libvirt_version)" ] || rmdir "$HOOKS" "${HOOKS%/*}" 2>/dev/null || true
    forget_compiled
    selinux_forget
}
