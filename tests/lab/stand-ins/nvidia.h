/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the stand-ins for NVIDIA's four modules call in each other. Where a behaviour is named by
 * a function, it was read in open-gpu-kernel-modules 595.45.04, kernel-open.
 */
#include <linux/fs.h>
#include <linux/pci.h>

#define NVIDIA_MAJOR 195
#define NVIDIA_MODESET_MINOR 254
#define NVIDIACTL_MINOR 255

struct nvidia_modeset_callbacks {
	/* There is another GPU: nvidia_drm gives it a card. */
	void (*probe)(struct pci_dev *pdev);
	/* A GPU is removed; what shows a picture on it must let go of it. */
	void (*remove)(struct pci_dev *pdev);
};

struct nvidia_rm_ops {
	/* Opens of a GPU by the kernel: they count, and take no reference on any module. */
	int (*open_gpu)(struct pci_dev *pdev);
	void (*close_gpu)(struct pci_dev *pdev);
	/* Calls work with each GPU. */
	void (*each_gpu)(void (*work)(struct pci_dev *pdev));
	void (*set_callbacks)(const struct nvidia_modeset_callbacks *callbacks);
};

/* of nvidia, for nvidia_modeset and nvidia_uvm */
const struct nvidia_rm_ops *nvidia_get_rm_ops(void);
/* of nvidia_modeset, for nvidia_drm */
const struct nvidia_rm_ops *nvKmsKapiGetFunctionsTable(void);
