# fish completion of vfio-console-hook: installed by install.sh

set -l commands plan status doctor check-config record recover take give

# The VMs that libvirt knows. It does not answer while a VM starts.
function __vfio_console_hook_vms
    timeout 2 virsh -r -c qemu:///system list --all --name 2>/dev/null | string match -v ''
end

# The display devices of this host.
function __vfio_console_hook_gpus
    for file in /sys/bus/pci/devices/*/class
        if string match -q '0x03*' -- (cat $file)
            string split / -- $file | tail -n 2 | head -n 1
        end
    end
end

complete -c vfio-console-hook -f
complete -c vfio-console-hook -s h -l help -d 'how it is used'

set -l first "not __fish_seen_subcommand_from $commands"
complete -c vfio-console-hook -n $first -l version -d 'its version'
complete -c vfio-console-hook -n $first -l root -r -F -d 'look at a recorded machine'
complete -c vfio-console-hook -n $first -l connect -x -d 'the libvirt to ask'
complete -c vfio-console-hook -n $first -a plan -d 'what prepare would do for a VM, and why'
complete -c vfio-console-hook -n $first -a status -d 'which VM holds what'
complete -c vfio-console-hook -n $first -a doctor -d 'whether all is in order'
complete -c vfio-console-hook -n $first -a check-config -d 'what is wrong in the configuration'
complete -c vfio-console-hook -n $first -a record -d 'write this machine down for a bug report'
complete -c vfio-console-hook -n $first -a recover -d 'give back what VMs hold that do not run'
complete -c vfio-console-hook -n $first -a take -d 'free GPUs by hand'
complete -c vfio-console-hook -n $first -a give -d 'give back GPUs that were taken by hand'

set -l plan '__fish_seen_subcommand_from plan'
complete -c vfio-console-hook -n $plan -a '(__vfio_console_hook_vms)' -d VM
complete -c vfio-console-hook -n $plan -l xml -r -F -d 'its domain XML, - for stdin'
complete -c vfio-console-hook -n $plan -l json -d 'as JSON'
complete -c vfio-console-hook -n $plan -l svg -r -F -d 'draw the memory into a file'

set -l status_ '__fish_seen_subcommand_from status'
complete -c vfio-console-hook -n $status_ -l json -d 'as JSON'
complete -c vfio-console-hook -n $status_ -l prometheus -d 'as metrics'

set -l doctor '__fish_seen_subcommand_from doctor'
complete -c vfio-console-hook -n $doctor -s q -l quiet -d 'only what is not in order'
complete -c vfio-console-hook -n $doctor -l json -d 'as JSON'

set -l check '__fish_seen_subcommand_from check-config'
complete -c vfio-console-hook -n $check -F
complete -c vfio-console-hook -n $check -l vm -x -a '(__vfio_console_hook_vms)' -d 'what holds for a VM'
complete -c vfio-console-hook -n $check -l json -d 'as JSON'

complete -c vfio-console-hook -n '__fish_seen_subcommand_from record' -F

set -l recover '__fish_seen_subcommand_from recover'
complete -c vfio-console-hook -n $recover -l force -d 'do not ask libvirt'
complete -c vfio-console-hook -n $recover -l wait -x -d 'seconds to wait'

set -l by_hand '__fish_seen_subcommand_from take give'
complete -c vfio-console-hook -n $by_hand -a '(__vfio_console_hook_gpus)' -d GPU
complete -c vfio-console-hook -n '__fish_seen_subcommand_from take' -l vfio -d 'bind them to vfio-pci'
