// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reserves 64 KiB in the last quarter of the GPU's BAR 0, as a driver does that knows an address
 * and no device: vfio-pci then cannot reserve the BAR, and refuses to map any of it (Linux
 * vfio_pci_core_mmap and vfio_pci_core_setup_barmap: pci_request_selected_regions).
 * It is loaded by name only.
 */
#include <linux/ioport.h>
#include <linux/module.h>
#include <linux/pci.h>

#define LENGTH 0x10000

static resource_size_t start;

static int __init foreign_init(void)
{
	struct pci_dev *pdev = pci_get_device(0x1234, 0x1111, NULL);

	if (!pdev)
		return -ENODEV;
	start = pci_resource_start(pdev, 0) + pci_resource_len(pdev, 0) / 4 * 3;
	pci_dev_put(pdev);
	return request_mem_region(start, LENGTH, "foreign") ? 0 : -EBUSY;
}
module_init(foreign_init);

static void __exit foreign_exit(void)
{
	release_mem_region(start, LENGTH);
}
module_exit(foreign_exit);

MODULE_DESCRIPTION("Reserves a part of a GPU's memory");
MODULE_LICENSE("GPL");
