// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stands in for i915 on QEMU's VGA and bochs-display. When it is unbound it behaves as i915 does
 * (Linux 6.12, drivers/gpu/drm/i915):
 *
 * - i915_driver_remove() unplugs first, like amdgpu: open files do not keep it from going on;
 * - intel_gt_pm_wait_for_idle(), of its i915_gem_suspend(), then waits until the GPU is parked,
 *   which is some time after the last use of it. Only SIGKILL ends that wait
 *   (intel_wakeref.c, wait_var_event_killable), and the removal goes on after it.
 *
 * parks_ms is that time; 0 is a GPU that never parks, as one whose wake reference has leaked.
 */
#define SCANOUT_NAME "i915"
#include "scanout.h"
#include <linux/wait_bit.h>
#include <linux/workqueue.h>

static uint parks_ms = 300;
module_param(parks_ms, uint, 0644);
MODULE_PARM_DESC(parks_ms, "how long after the last use the GPU is parked, 0 for never");

struct i915 {
	struct scanout *out;
	struct delayed_work park;
	bool awake;
};

static void i915_park(struct work_struct *work)
{
	struct i915 *i915 = container_of(work, struct i915, park.work);

	WRITE_ONCE(i915->awake, false);
	wake_up_var(&i915->awake);
}

static int i915_pci_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct i915 *i915;
	int error;

	error = aperture_remove_conflicting_pci_devices(pdev, SCANOUT_NAME);
	if (error)
		return error;
	error = pcim_enable_device(pdev);
	if (error)
		return error;
	pci_set_master(pdev); /* i915_driver_hw_probe */
	i915 = devm_kzalloc(&pdev->dev, sizeof(*i915), GFP_KERNEL);
	if (!i915)
		return -ENOMEM;
	INIT_DELAYED_WORK(&i915->park, i915_park);
	i915->out = scanout_create(pdev);
	if (IS_ERR(i915->out))
		return PTR_ERR(i915->out);
	pci_set_drvdata(pdev, i915);
	error = drm_dev_register(i915->out->drm, 0);
	if (error) {
		drm_dev_put(i915->out->drm);
		return error;
	}
	scanout_show(i915->out);
	return 0;
}

static void i915_pci_remove(struct pci_dev *pdev)
{
	struct i915 *i915 = pci_get_drvdata(pdev);

	drm_dev_unplug(i915->out->drm);
	synchronize_rcu();

	WRITE_ONCE(i915->awake, true);
	if (parks_ms)
		schedule_delayed_work(&i915->park, msecs_to_jiffies(parks_ms));
	if (wait_var_event_killable(&i915->awake, !READ_ONCE(i915->awake)))
		dev_warn(&pdev->dev, "the wait for idle was interrupted\n");
	cancel_delayed_work_sync(&i915->park);
	drm_atomic_helper_shutdown(i915->out->drm);
	drm_dev_put(i915->out->drm);
}

static const struct pci_device_id i915_ids[] = { { PCI_DEVICE(0x1234, 0x1111) }, {} };
MODULE_DEVICE_TABLE(pci, i915_ids);

static struct pci_driver i915_driver = {
	.name = "i915",
	.id_table = i915_ids,
	.probe = i915_pci_probe,
	.remove = i915_pci_remove,
};
module_pci_driver(i915_driver);

MODULE_DESCRIPTION("Stands in for i915");
MODULE_LICENSE("GPL");
