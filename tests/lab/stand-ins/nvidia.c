// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stands in for nvidia on QEMU's VGA and bochs-display: who counts as a user of a GPU, and what a
 * removal waits for. nvidia.h says where it was read.
 *
 * - nv_pci_probe() reserves the registers, BAR 2 here, and leaves the firmware's framebuffer alone.
 * - The kernel makes no nodes: programs do, with mknod (nvidia-modprobe), and they stay.
 *   An open file of any of them holds the module (.owner).
 * - nv_open_device() adds one to the usage count of the GPU, for an open file (nvidia_open) and for
 *   the other modules (nvidia_dev_get); only the former holds the module too. (A file of nvidiactl
 *   can take some as well, NV_ESC_ATTACH_GPUS_TO_FD, which is not here.) The first starts the
 *   GPU, with its interrupt (nv_start_device, nv_init_msi), and the last close stops it. The count
 *   is nowhere to be read, but the interrupt is in msi_irqs. QEMU's VGA has none: it is only shown.
 * - In persistence mode without the daemon (nvidia-smi -pm 1) the last close leaves the GPU started
 *   (nv_stop_device, NV_FLAG_PERSISTENT_SW_STATE); the count is 0, and a removal does not wait.
 * - With NVreg_GpuInitOnProbe=1 nv_pci_probe() starts the GPU and only nv_pci_remove_helper() stops
 *   it (nvl->init_on_probe); nothing is counted. The option is in no file of /sys or /proc.
 * - nv_pci_remove_helper() takes the GPU off the list, then waits until the count is 0. It sleeps
 *   half a second in a loop (os_delay, nv_sleep_ms), and no signal ends that: one that is pending
 *   turns the sleep into a busy loop. nvidia_dev_put() no longer finds the GPU by then, so
 *   a count of another module never goes.
 */
#include <linux/cdev.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include "nvidia.h"

struct gpu {
	struct list_head list;
	struct pci_dev *pdev;
	struct proc_dir_entry *dir;
	struct mutex lock; /* ldata_lock */
	atomic_t usage;
	struct kobject *irqs;
	int minor;
	bool started;
	bool listed;
};

static LIST_HEAD(gpus);
static DEFINE_MUTEX(devices); /* LOCK_NV_LINUX_DEVICES */
static struct proc_dir_entry *proc_nvidia, *proc_gpus;
static const struct nvidia_modeset_callbacks *modeset;
static int probed;

static bool persistent;
module_param(persistent, bool, 0644);
MODULE_PARM_DESC(persistent, "persistence mode, as nvidia-smi -pm sets it without the daemon");

static uint init_on_probe;
module_param_named(NVreg_GpuInitOnProbe, init_on_probe, uint, 0);

static struct gpu *find(struct pci_dev *pdev)
{
	struct gpu *gpu;

	list_for_each_entry(gpu, &gpus, list)
		if (gpu->pdev == pdev && gpu->listed)
			return gpu;
	return NULL;
}

static ssize_t irq_show(struct kobject *irqs, struct kobj_attribute *attribute, char *text)
{
	return sysfs_emit(text, "msi\n");
}

static struct kobj_attribute irq = __ATTR(24, 0444, irq_show, NULL);

static void start(struct gpu *gpu)
{
	if (!gpu->started && gpu->irqs && sysfs_create_file(gpu->irqs, &irq.attr))
		pr_warn("NVRM: no msi_irqs\n");
	gpu->started = true;
}

static void stop(struct gpu *gpu)
{
	if (gpu->started && gpu->irqs)
		sysfs_remove_file(gpu->irqs, &irq.attr);
	gpu->started = false;
}

/* With gpu->lock held: nv_open_device(). */
static void open_device(struct gpu *gpu)
{
	start(gpu);
	atomic_inc(&gpu->usage);
}

/* With gpu->lock held: nv_close_device(). */
static void close_device(struct gpu *gpu)
{
	if (atomic_dec_and_test(&gpu->usage) && !persistent && !init_on_probe)
		stop(gpu);
}

static int dev_get(struct pci_dev *pdev)
{
	struct gpu *gpu;

	mutex_lock(&devices);
	gpu = find(pdev);
	if (gpu) {
		mutex_lock(&gpu->lock);
		open_device(gpu);
		mutex_unlock(&gpu->lock);
	}
	mutex_unlock(&devices);
	return gpu ? 0 : -ENODEV;
}

static void dev_put(struct pci_dev *pdev)
{
	struct gpu *gpu;

	mutex_lock(&devices);
	gpu = find(pdev);
	if (gpu) {
		mutex_lock(&gpu->lock);
		close_device(gpu);
		mutex_unlock(&gpu->lock);
	}
	mutex_unlock(&devices);
}

static void each_gpu(void (*work)(struct pci_dev *pdev))
{
	struct pci_dev *found[32];
	struct gpu *gpu;
	int count = 0, i;

	/* work() opens GPUs, which takes the lock. */
	mutex_lock(&devices);
	list_for_each_entry(gpu, &gpus, list)
		if (gpu->listed && count < ARRAY_SIZE(found))
			found[count++] = pci_dev_get(gpu->pdev);
	mutex_unlock(&devices);
	for (i = 0; i < count; i++) {
		work(found[i]);
		pci_dev_put(found[i]);
	}
}

static void set_callbacks(const struct nvidia_modeset_callbacks *callbacks)
{
	modeset = callbacks;
}

static const struct nvidia_rm_ops ops = {
	.open_gpu = dev_get,
	.close_gpu = dev_put,
	.each_gpu = each_gpu,
	.set_callbacks = set_callbacks,
};

const struct nvidia_rm_ops *nvidia_get_rm_ops(void)
{
	return &ops;
}
EXPORT_SYMBOL(nvidia_get_rm_ops);

/* A count that nobody gives back, as reported of 595: writing 1 takes one of each GPU, 0 returns
 * it.
 */
static int leak_set(const char *text, const struct kernel_param *param)
{
	bool before = *(bool *)param->arg;
	struct gpu *gpu;
	int error = param_set_bool(text, param);

	if (error || before == *(bool *)param->arg)
		return error;
	mutex_lock(&devices);
	list_for_each_entry(gpu, &gpus, list) {
		mutex_lock(&gpu->lock);
		if (before)
			close_device(gpu);
		else
			open_device(gpu);
		mutex_unlock(&gpu->lock);
	}
	mutex_unlock(&devices);
	return 0;
}

static bool leak;
static const struct kernel_param_ops leak_ops = { .set = leak_set, .get = param_get_bool };
module_param_cb(leak, &leak_ops, &leak, 0644);
MODULE_PARM_DESC(leak, "a usage count of each GPU without an open file");

static int nvidia_open(struct inode *inode, struct file *file)
{
	struct gpu *gpu, *found = NULL;

	file->private_data = NULL;
	if (iminor(inode) == NVIDIACTL_MINOR)
		return 0;
	mutex_lock(&devices);
	list_for_each_entry(gpu, &gpus, list)
		if (gpu->listed && gpu->minor == iminor(inode))
			found = gpu;
	if (found) {
		mutex_lock(&found->lock);
		open_device(found);
		mutex_unlock(&found->lock);
	}
	mutex_unlock(&devices);
	file->private_data = found;
	return found ? 0 : -ENODEV;
}

/* nvidia_close_callback() has the GPU, and does not look for it. */
static int nvidia_close(struct inode *inode, struct file *file)
{
	struct gpu *gpu = file->private_data;

	if (gpu) {
		mutex_lock(&gpu->lock);
		close_device(gpu);
		mutex_unlock(&gpu->lock);
	}
	return 0;
}

static const struct file_operations nvidia_fops = {
	.owner = THIS_MODULE,
	.open = nvidia_open,
	.release = nvidia_close,
};

/* nv_procfs_read_gpu_info(); the usage count is nowhere in it. */
static int information_show(struct seq_file *s, void *unused)
{
	struct gpu *gpu = s->private;

	seq_puts(s, "Model: \t\t Stand-in\n");
	seq_printf(s, "IRQ:   \t\t %d\n", gpu->pdev->irq);
	seq_printf(s, "Video BIOS: \t %s\n", gpu->started ? "94.02.5c.00.02" : "??.??.??.??.??");
	seq_puts(s, "Bus Type: \t PCIe\nDMA Size: \t 47 bits\nDMA Mask: \t 0x7fffffffffff\n");
	seq_printf(s, "Bus Location: \t %s\n", pci_name(gpu->pdev));
	seq_printf(s, "Device Minor: \t %u\n", gpu->minor);
	seq_puts(s, "GPU Firmware: \t N/A\nGPU Excluded:\t No\n");
	return 0;
}

/* Linux module.h and nv.c: the version is in /proc too. */
static int version_show(struct seq_file *s, void *unused)
{
	seq_puts(s, "NVRM version: NVIDIA UNIX Open Kernel Module  595.45.04  Stand-in\n");
	return 0;
}

static int free_minor(void)
{
	struct gpu *gpu;
	int minor = 0;

again:
	list_for_each_entry(gpu, &gpus, list)
		if (gpu->minor == minor) {
			minor++;
			goto again;
		}
	return minor;
}

static int nvidia_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct gpu *gpu = kzalloc(sizeof(*gpu), GFP_KERNEL);
	int error;

	if (!gpu)
		return -ENOMEM;
	error = pci_enable_device(pdev);
	if (error)
		goto free;
	error = pci_request_region(pdev, 2, "nvidia");
	if (error)
		goto disable;
	gpu->pdev = pdev;
	gpu->listed = true;
	mutex_init(&gpu->lock);
	gpu->irqs = kobject_create_and_add("msi_irqs", &pdev->dev.kobj);
	pci_set_drvdata(pdev, gpu);
	if (init_on_probe)
		start(gpu);

	mutex_lock(&devices);
	gpu->minor = free_minor();
	list_add_tail(&gpu->list, &gpus);
	gpu->dir = proc_mkdir(pci_name(pdev), proc_gpus);
	proc_create_single_data("information", 0444, gpu->dir, information_show, gpu);
	probed++;
	mutex_unlock(&devices);
	if (modeset && modeset->probe)
		modeset->probe(pdev); /* nvidia_modeset_probe() */
	return 0;

disable:
	pci_disable_device(pdev);
free:
	kfree(gpu);
	return error;
}

/* os_delay(500), with its sleep that is set up once. */
static void os_delay(unsigned int ms)
{
	unsigned long end = jiffies + msecs_to_jiffies(ms);

	set_current_state(TASK_INTERRUPTIBLE);
	do {
		schedule_timeout(max_t(long, end - jiffies, 1));
	} while (time_before(jiffies, end));
}

/* Releases without it wait for their own nvidia_drm; its name is how the program tells. */
static noinline void nvidia_modeset_remove(struct pci_dev *pdev)
{
	if (modeset && modeset->remove)
		modeset->remove(pdev);
}

static void nvidia_remove(struct pci_dev *pdev)
{
	struct gpu *gpu = pci_get_drvdata(pdev);

	nvidia_modeset_remove(pdev);

	mutex_lock(&devices);
	mutex_lock(&gpu->lock);
	gpu->listed = false;
	if (atomic_read(&gpu->usage)) {
		pr_err("NVRM: Attempting to remove device %s with non-zero usage count!\n",
		       pci_name(pdev));
		while (atomic_read(&gpu->usage)) {
			mutex_unlock(&gpu->lock);
			mutex_unlock(&devices);
			os_delay(500);
			mutex_lock(&devices);
			mutex_lock(&gpu->lock);
		}
		pr_err("NVRM: Continuing with GPU removal for device %s\n", pci_name(pdev));
	}
	stop(gpu);
	kobject_put(gpu->irqs);
	proc_remove(gpu->dir);
	list_del(&gpu->list);
	probed--;
	mutex_unlock(&gpu->lock);
	mutex_unlock(&devices);

	pci_release_region(pdev, 2);
	pci_disable_device(pdev);
	kfree(gpu);
}

static const struct pci_device_id nvidia_ids[] = { { PCI_DEVICE(0x1234, 0x1111) }, {} };
MODULE_DEVICE_TABLE(pci, nvidia_ids);

static struct pci_driver nvidia_driver = {
	.name = "nvidia",
	.id_table = nvidia_ids,
	.probe = nvidia_probe,
	.remove = nvidia_remove,
};

static struct cdev nodes, control;

/* nvidia_init_module(): without a GPU to drive it does not load. */
static int __init nvidia_init(void)
{
	int error;

	proc_nvidia = proc_mkdir("driver/nvidia", NULL);
	proc_create_single_data("version", 0444, proc_nvidia, version_show, NULL);
	proc_gpus = proc_mkdir("gpus", proc_nvidia);
	error = register_chrdev_region(MKDEV(NVIDIA_MAJOR, 0), NVIDIA_MODESET_MINOR, "nvidia");
	if (error)
		goto proc;
	error = register_chrdev_region(MKDEV(NVIDIA_MAJOR, NVIDIACTL_MINOR), 1, "nvidiactl");
	if (error)
		goto region;
	cdev_init(&nodes, &nvidia_fops);
	cdev_init(&control, &nvidia_fops);
	error = cdev_add(&nodes, MKDEV(NVIDIA_MAJOR, 0), NVIDIA_MODESET_MINOR);
	if (error)
		goto regions;
	error = cdev_add(&control, MKDEV(NVIDIA_MAJOR, NVIDIACTL_MINOR), 1);
	if (error)
		goto node;
	error = pci_register_driver(&nvidia_driver);
	if (!error && !probed) {
		pr_err("NVRM: No NVIDIA devices probed.\n");
		pci_unregister_driver(&nvidia_driver);
		error = -ENODEV;
	}
	if (!error)
		return 0;
	cdev_del(&control);
node:
	cdev_del(&nodes);
regions:
	unregister_chrdev_region(MKDEV(NVIDIA_MAJOR, NVIDIACTL_MINOR), 1);
region:
	unregister_chrdev_region(MKDEV(NVIDIA_MAJOR, 0), NVIDIA_MODESET_MINOR);
proc:
	proc_remove(proc_nvidia);
	return error;
}
module_init(nvidia_init);

static void __exit nvidia_exit(void)
{
	pci_unregister_driver(&nvidia_driver);
	cdev_del(&control);
	cdev_del(&nodes);
	unregister_chrdev_region(MKDEV(NVIDIA_MAJOR, NVIDIACTL_MINOR), 1);
	unregister_chrdev_region(MKDEV(NVIDIA_MAJOR, 0), NVIDIA_MODESET_MINOR);
	proc_remove(proc_nvidia);
}
module_exit(nvidia_exit);

MODULE_DESCRIPTION("Stands in for nvidia");
MODULE_LICENSE("GPL");
