// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes QEMU's bochs-display a 3D controller (class 0302), as the second GPU of a laptop
 * is. QEMU has no such device, and everything that asks for the class reads pdev->class.
 */
#include <linux/module.h>
#include <linux/pci.h>

static const struct pci_device_id class_0302_ids[] = { { PCI_DEVICE(0x1234, 0x1111) }, {} };
MODULE_DEVICE_TABLE(pci, class_0302_ids);

static int __init class_0302_init(void)
{
	struct pci_dev *pdev = NULL;

	while ((pdev = pci_get_device(0x1234, 0x1111, pdev)))
		pdev->class = PCI_CLASS_DISPLAY_3D << 8;
	return 0;
}
module_init(class_0302_init);

static void __exit class_0302_exit(void)
{
}
module_exit(class_0302_exit);

MODULE_DESCRIPTION("Makes bochs-display a 3D controller");
MODULE_LICENSE("GPL");
