// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stands in for nvidia_drm: cards on the GPUs of nvidia. nvidia.h says where it was read.
 *
 * - nv_drm_dev_load() opens the GPU with modeset=1: it counts as used for as long as this module is
 *   loaded. An open card holds this module.
 * - nv_drm_register_drm_device() takes the firmware's framebuffer away with fbdev=1 alone, and not
 *   before the card is there.
 * - nv_drm_remove() unplugs one card when its GPU is removed; nv_drm_remove_devices() unregisters
 *   all when this module goes.
 */
#define SCANOUT_NAME "nvidia-drm"
#include "scanout.h"
#include "nvidia.h"

static bool show = true;
module_param_named(modeset, show, bool, 0400);
static bool fbdev = true;
module_param(fbdev, bool, 0400);

struct card {
	struct list_head list;
	struct pci_dev *pdev;
	struct scanout *out;
};

static LIST_HEAD(cards);
static DEFINE_MUTEX(lock);

static void add(struct pci_dev *pdev)
{
	const struct nvidia_rm_ops *ops = nvKmsKapiGetFunctionsTable();
	struct card *card = kzalloc(sizeof(*card), GFP_KERNEL);

	if (!card)
		return;
	if (show && ops->open_gpu(pdev))
		goto free;
	card->out = scanout_create(pdev);
	if (IS_ERR(card->out))
		goto close;
	if (!show)
		card->out->drm->driver_features &= ~(DRIVER_MODESET | DRIVER_ATOMIC);
	if (drm_dev_register(card->out->drm, 0))
		goto put;
	if (show && fbdev) {
		aperture_remove_conflicting_pci_devices(pdev, SCANOUT_NAME);
		scanout_show(card->out);
	}
	card->pdev = pdev;
	mutex_lock(&lock);
	list_add(&card->list, &cards);
	mutex_unlock(&lock);
	return;

put:
	drm_dev_put(card->out->drm);
close:
	if (show)
		ops->close_gpu(pdev);
free:
	kfree(card);
}

/* nv_drm_dev_destroy() */
static void destroy(struct card *card)
{
	if (show)
		drm_atomic_helper_shutdown(card->out->drm);
	if (show)
		nvKmsKapiGetFunctionsTable()->close_gpu(card->pdev);
	drm_dev_put(card->out->drm);
	kfree(card);
}

static void nv_drm_remove(struct pci_dev *pdev)
{
	struct card *card, *found = NULL;

	mutex_lock(&lock);
	list_for_each_entry(card, &cards, list)
		if (card->pdev == pdev)
			found = card;
	if (found)
		list_del(&found->list);
	mutex_unlock(&lock);
	if (found) {
		drm_dev_unplug(found->out->drm);
		destroy(found);
	}
}

static const struct nvidia_modeset_callbacks callbacks = { .probe = add, .remove = nv_drm_remove };

static int __init nv_drm_init(void)
{
	const struct nvidia_rm_ops *ops = nvKmsKapiGetFunctionsTable();

	ops->set_callbacks(&callbacks);
	ops->each_gpu(add);
	return 0;
}
module_init(nv_drm_init);

static void __exit nv_drm_exit(void)
{
	struct card *card, *next;

	nvKmsKapiGetFunctionsTable()->set_callbacks(NULL);
	list_for_each_entry_safe(card, next, &cards, list) {
		list_del(&card->list);
		drm_dev_unregister(card->out->drm);
		destroy(card);
	}
}
module_exit(nv_drm_exit);

/* udev loads it as it loads nvidia. */
static const struct pci_device_id nv_drm_ids[] = { { PCI_DEVICE(0x1234, 0x1111) }, {} };
MODULE_DEVICE_TABLE(pci, nv_drm_ids);

MODULE_DESCRIPTION("Stands in for nvidia_drm");
MODULE_LICENSE("GPL");
