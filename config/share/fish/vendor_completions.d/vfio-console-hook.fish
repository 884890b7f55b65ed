# fish completion of vfio-console-hook: installed by install.sh

set -l commands plan status doctor check-config record rehearse keep recover dismiss notify take give

# The VMs that libvirt knows. It does not answer while a VM starts.
function __vfio_console_hook_vms
    timeout 2 virsh -r -c qemu:///system list --all --name 2>/dev/null | string match -v ''
end

# The display devices of this host.
function __vfio_console_hook_gpus
    for file in /sys/bus/pci/devices/*/class
        if string match -qr '^0x(03|12)' -- (cat $file)
            string split / -- $file | tail -n 2 | head -n 1
        end
    end
end

complete -c vfio-console-hook -f
complete -c vfio-console-hook -s h -l help -d 'print the usage'

set -l first "not __fish_seen_subcommand_from $commands"
complete -c vfio-console-hook -n $first -l version -d 'print the version'
complete -c vfio-console-hook -n $first -l root -r -F -d 'inspect a snapshot of a machine'
complete -c vfio-console-hook -n $first -l connect -x -d 'the libvirt that knows the VMs'
complete -c vfio-console-hook -n $first -a plan -d 'what prepare would do for a VM, and why'
complete -c vfio-console-hook -n $first -a status -d 'which VM holds what, and how to undo it by hand'
complete -c vfio-console-hook -n $first -a doctor -d 'check this host, the installation and the VMs'
complete -c vfio-console-hook -n $first -a check-config -d 'configuration mistakes, or effective configuration of a VM'
complete -c vfio-console-hook -n $first -a record -d 'write a snapshot of this machine for a bug report'
complete -c vfio-console-hook -n $first -a rehearse -d 'try what a VM\'s start and stop do here, without the VM'
complete -c vfio-console-hook -n $first -a keep -d 'let a VM that `rehearse --start` has started go on'
complete -c vfio-console-hook -n $first -a recover -d 'release GPUs still claimed by VMs that are not running'
complete -c vfio-console-hook -n $first -a dismiss -d 'hide what was refused, or not given back after a VM'
complete -c vfio-console-hook -n $first -a notify -d 'show in this desktop session why a VM was refused'
complete -c vfio-console-hook -n $first -a take -d 'free GPUs by hand, where libvirt calls no hook'
complete -c vfio-console-hook -n $first -a give -d 'release GPUs that were taken by hand'

set -l plan '__fish_seen_subcommand_from plan'
complete -c vfio-console-hook -n $plan -a '(__vfio_console_hook_vms)' -d VM
complete -c vfio-console-hook -n $plan -l xml -r -F -d 'read the domain XML from a file, - for stdin'
complete -c vfio-console-hook -n $plan -l json -d 'print JSON'
complete -c vfio-console-hook -n $plan -l svg -r -F -d 'draw a picture of the memory'

set -l status_ '__fish_seen_subcommand_from status'
complete -c vfio-console-hook -n $status_ -l json -d 'print JSON'
complete -c vfio-console-hook -n $status_ -l prometheus -d 'print metrics'

set -l doctor '__fish_seen_subcommand_from doctor'
complete -c vfio-console-hook -n $doctor -s q -l quiet -d 'print only what is wrong'
complete -c vfio-console-hook -n $doctor -l json -d 'print JSON'

set -l check '__fish_seen_subcommand_from check-config'
complete -c vfio-console-hook -n $check -F
complete -c vfio-console-hook -n $check -l vm -x -a '(__vfio_console_hook_vms)' -d 'print the settings of a VM'
complete -c vfio-console-hook -n $check -l json -d 'print JSON'

complete -c vfio-console-hook -n '__fish_seen_subcommand_from record' -F

set -l rehearse '__fish_seen_subcommand_from rehearse'
complete -c vfio-console-hook -n $rehearse -a '(__vfio_console_hook_vms)' -d VM
complete -c vfio-console-hook -n $rehearse -l xml -r -F -d 'read the domain XML from a file, - for stdin'
complete -c vfio-console-hook -n $rehearse -l yes -d 'do not ask'
complete -c vfio-console-hook -n $rehearse -l seconds -x -d 'how long the GPU is away'
complete -c vfio-console-hook -n $rehearse -l times -x -d 'repeat all of it'
complete -c vfio-console-hook -n $rehearse -l reset -d 'let vfio reset the GPU, too'
complete -c vfio-console-hook -n $rehearse -l start -d 'start the VM itself, destroyed unless kept'
complete -c vfio-console-hook -n $rehearse -l minutes -x -d 'how long it has with --start'
complete -c vfio-console-hook -n $rehearse -l report -r -F -d 'write a report for developers'
complete -c vfio-console-hook -n $rehearse -l json -d 'print JSON'

complete -c vfio-console-hook -n '__fish_seen_subcommand_from keep' -a '(__vfio_console_hook_vms)' -d VM

set -l recover '__fish_seen_subcommand_from recover'
complete -c vfio-console-hook -n $recover -l force -d 'do not ask libvirt'
complete -c vfio-console-hook -n $recover -l wait -x -d 'seconds to wait'

complete -c vfio-console-hook -n '__fish_seen_subcommand_from dismiss' -a '(__vfio_console_hook_vms)' -d VM

complete -c vfio-console-hook -n '__fish_seen_subcommand_from notify' -l again -d 'also what was shown before'

set -l by_hand '__fish_seen_subcommand_from take give'
complete -c vfio-console-hook -n $by_hand -a '(__vfio_console_hook_gpus)' -d GPU
complete -c vfio-console-hook -n '__fish_seen_subcommand_from take' -l vfio -d 'also bind them to vfio-pci'
complete -c vfio-console-hook -n '__fish_seen_subcommand_from take' -l for -x -a '(__vfio_console_hook_vms)' -d 'use the configuration of a VM'
