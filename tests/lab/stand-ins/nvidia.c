// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stands in for nvidia without a framebuffer of its own (before release 570, or
 * fbdev=0) on QEMU's VGA: it enables the GPU and never calls the aperture helpers, so
 * the firmware's framebuffer lives on beside it (nv.c, nv_pci_probe).
 */
#include <linux/module.h>
#include <linux/pci.h>

static int nvidia_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	return pci_enable_device(pdev);
}

static void nvidia_remove(struct pci_dev *pdev)
{
	pci_disable_device(pdev);
}

static const struct pci_device_id nvidia_ids[] = { { PCI_DEVICE(0x1234, 0x1111) }, {} };
MODULE_DEVICE_TABLE(pci, nvidia_ids);

static struct pci_driver nvidia_driver = {
	.name = "nvidia",
	.id_table = nvidia_ids,
	.probe = nvidia_probe,
	.remove = nvidia_remove,
};
module_pci_driver(nvidia_driver);

MODULE_DESCRIPTION("Stands in for nvidia without a framebuffer");
MODULE_LICENSE("GPL");
