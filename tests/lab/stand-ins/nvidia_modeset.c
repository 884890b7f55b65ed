// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stands in for nvidia_modeset: it is between nvidia and nvidia_drm, and has a node. An open file of
 * the node holds this module, and no GPU before it asks for one. nvidia.h says where it was read.
 */
#include <linux/cdev.h>
#include <linux/module.h>
#include "nvidia.h"

static const struct file_operations modeset_fops = { .owner = THIS_MODULE };
static struct cdev node;

const struct nvidia_rm_ops *nvKmsKapiGetFunctionsTable(void)
{
	return nvidia_get_rm_ops();
}
EXPORT_SYMBOL(nvKmsKapiGetFunctionsTable);

static int __init modeset_init(void)
{
	dev_t number = MKDEV(NVIDIA_MAJOR, NVIDIA_MODESET_MINOR);
	int error = register_chrdev_region(number, 1, "nvidia-modeset");

	if (error)
		return error;
	cdev_init(&node, &modeset_fops);
	error = cdev_add(&node, number, 1);
	if (error)
		unregister_chrdev_region(number, 1);
	return error;
}
module_init(modeset_init);

static void __exit modeset_exit(void)
{
	cdev_del(&node);
	unregister_chrdev_region(MKDEV(NVIDIA_MAJOR, NVIDIA_MODESET_MINOR), 1);
}
module_exit(modeset_exit);

MODULE_DESCRIPTION("Stands in for nvidia_modeset");
MODULE_LICENSE("GPL");
