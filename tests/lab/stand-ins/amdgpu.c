// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stands in for amdgpu on QEMU's VGA and bochs-display. When it is unbound it behaves as amdgpu
 * does (Linux 6.12, drivers/gpu/drm/amd/amdgpu):
 *
 * - amdgpu_pci_probe() takes the firmware's framebuffer away first, requests no BAR, and has a
 *   render node;
 * - amdgpu_pci_remove() unplugs: the nodes are gone, calls on files that are still open fail with
 *   ENODEV, and only the last close frees the device. Open files do not keep it from going on;
 * - amdgpu_device_fini_hw() then stops the display and one hardware block after the other, each
 *   by waiting for its firmware, in msleep(), which no signal ends. fini_ms is how long.
 */
#define SCANOUT_NAME "amdgpu"
#include "scanout.h"
#include <linux/delay.h>

static uint fini_ms = 200;
module_param(fini_ms, uint, 0644);
MODULE_PARM_DESC(fini_ms, "how long the hardware blocks take to stop");

static int amdgpu_pci_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct scanout *out;
	int error;

	error = aperture_remove_conflicting_pci_devices(pdev, SCANOUT_NAME);
	if (error)
		return error;
	error = pcim_enable_device(pdev);
	if (error)
		return error;
	out = scanout_create(pdev);
	if (IS_ERR(out))
		return PTR_ERR(out);
	pci_set_drvdata(pdev, out);
	error = drm_dev_register(out->drm, 0);
	if (error) {
		drm_dev_put(out->drm);
		return error;
	}
	scanout_show(out);
	return 0;
}

static void amdgpu_pci_remove(struct pci_dev *pdev)
{
	struct scanout *out = pci_get_drvdata(pdev);

	drm_dev_unplug(out->drm);
	dev_info(&pdev->dev, "amdgpu: finishing device.\n");
	drm_atomic_helper_shutdown(out->drm);
	msleep(fini_ms);
	drm_dev_put(out->drm);
}

static const struct pci_device_id amdgpu_ids[] = { { PCI_DEVICE(0x1234, 0x1111) }, {} };
MODULE_DEVICE_TABLE(pci, amdgpu_ids);

static struct pci_driver amdgpu_driver = {
	.name = "amdgpu",
	.id_table = amdgpu_ids,
	.probe = amdgpu_pci_probe,
	.remove = amdgpu_pci_remove,
};
module_pci_driver(amdgpu_driver);

MODULE_DESCRIPTION("Stands in for amdgpu");
MODULE_LICENSE("GPL");
