// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stands in for nvidia_uvm: a node that programs compute through. What is written to it, a PCI
 * address, is a GPU that the file registers (UVM_REGISTER_GPU); each counts until it is closed.
 */
#include <linux/cdev.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include "nvidia.h"

static dev_t number;
static struct cdev node;

static ssize_t uvm_write(struct file *file, const char __user *text, size_t length, loff_t *at)
{
	unsigned int domain, bus, slot, function;
	struct pci_dev *pdev;
	char address[16] = "";
	int error = -EINVAL;

	if (file->private_data || length >= sizeof(address) || copy_from_user(address, text, length))
		return -EINVAL;
	if (sscanf(address, "%x:%x:%x.%x", &domain, &bus, &slot, &function) != 4)
		return -EINVAL;
	pdev = pci_get_domain_bus_and_slot(domain, bus, PCI_DEVFN(slot, function));
	if (pdev)
		error = nvidia_get_rm_ops()->open_gpu(pdev);
	if (error) {
		pci_dev_put(pdev);
		return error;
	}
	file->private_data = pdev;
	return length;
}

static int uvm_release(struct inode *inode, struct file *file)
{
	struct pci_dev *pdev = file->private_data;

	if (pdev)
		nvidia_get_rm_ops()->close_gpu(pdev);
	pci_dev_put(pdev);
	return 0;
}

static const struct file_operations uvm_fops = {
	.owner = THIS_MODULE,
	.write = uvm_write,
	.release = uvm_release,
};

static int __init uvm_init(void)
{
	int error = alloc_chrdev_region(&number, 0, 1, "nvidia-uvm");

	if (error)
		return error;
	cdev_init(&node, &uvm_fops);
	error = cdev_add(&node, number, 1);
	if (error)
		unregister_chrdev_region(number, 1);
	return error;
}
module_init(uvm_init);

static void __exit uvm_exit(void)
{
	cdev_del(&node);
	unregister_chrdev_region(number, 1);
}
module_exit(uvm_exit);

MODULE_DESCRIPTION("Stands in for nvidia_uvm");
MODULE_LICENSE("GPL");
