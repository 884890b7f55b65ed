#!/bin/sh
# The hook that guides to single GPU passthrough recommend, written by us for the comparison:
# the same steps on every machine, without a check, ignoring errors. Runs inside a lab
# machine. The lab replaces @GPU@ by the GPU's name for virsh.

# A log for people who read the transcript.
exec >> /run/lab-script.log 2>&1
set -x

vtcon=/sys/class/vtconsole
efifb=/sys/bus/platform/drivers/efi-framebuffer

case "$2/$3" in
prepare/begin)
    systemctl stop display-manager
    echo 0 > $vtcon/vtcon0/bind
    echo 0 > $vtcon/vtcon1/bind
    echo efi-framebuffer.0 > $efifb/unbind
    # The guides: "Avoid a race condition".
    sleep 2
    modprobe vfio-pci
    virsh nodedev-detach @GPU@
    ;;
release/end)
    virsh nodedev-reattach @GPU@
    echo 1 > $vtcon/vtcon0/bind
    echo 1 > $vtcon/vtcon1/bind
    echo efi-framebuffer.0 > $efifb/bind
    systemctl start display-manager
    ;;
esac
exit 0
