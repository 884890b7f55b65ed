/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The picture of a stand-in: a DRM device with one connector on QEMU's VGA or bochs-display,
 * by the kernel's own helpers. A driver includes it, sets SCANOUT_NAME before that, and adds
 * what it does when it is unbound.
 *
 * Registers: QEMU docs/specs/standard-vga.rst (the dispi interface at 0x500 of BAR 2).
 */
#include <linux/aperture.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/version.h>

#include <drm/drm_atomic_helper.h>
#include <drm/drm_damage_helper.h>
#include <drm/drm_drv.h>
#include <drm/drm_edid.h>
#include <drm/drm_format_helper.h>
#include <drm/drm_fourcc.h>
#include <drm/drm_framebuffer.h>
#include <drm/drm_gem_atomic_helper.h>
#include <drm/drm_gem_framebuffer_helper.h>
#include <drm/drm_gem_shmem_helper.h>
#include <drm/drm_managed.h>
#include <drm/drm_probe_helper.h>
#include <drm/drm_simple_kms_helper.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
#include <drm/clients/drm_client_setup.h>
#include <drm/drm_fbdev_shmem.h>
#define SCANOUT_FBDEV DRM_FBDEV_SHMEM_DRIVER_OPS,
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
#include <drm/drm_fbdev_shmem.h>
#define SCANOUT_FBDEV
#else
#include <drm/drm_fb_helper.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
#include <drm/drm_fbdev_generic.h>
#endif
#define SCANOUT_FBDEV
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 14, 0)
#define SCANOUT_DATE .date = "20150101", /* drm_version() hands it out */
#else
#define SCANOUT_DATE
#endif

#define SCANOUT_WIDTH 1280
#define SCANOUT_HEIGHT 800
#define SCANOUT_PITCH (SCANOUT_WIDTH * 4)

enum { XRES = 1, YRES, BPP, ENABLE, BANK, VIRT_WIDTH, VIRT_HEIGHT, X_OFFSET, Y_OFFSET };

struct scanout {
	struct drm_device *drm;
	struct drm_simple_display_pipe pipe;
	struct drm_connector connector;
	void __iomem *vram;
	void __iomem *registers;
};

static void scanout_write(struct scanout *out, int index, u16 value)
{
	writew(value, out->registers + 0x500 + index * 2);
}

static void scanout_copy(struct scanout *out, struct drm_plane_state *state, struct drm_rect *area)
{
	struct drm_shadow_plane_state *shadow = to_drm_shadow_plane_state(state);
	struct iosys_map to = IOSYS_MAP_INIT_VADDR_IOMEM(out->vram);
	const unsigned int pitch = SCANOUT_PITCH;

	iosys_map_incr(&to, drm_fb_clip_offset(pitch, state->fb->format, area));
	drm_fb_memcpy(&to, &pitch, shadow->data, state->fb, area);
}

static void scanout_enable(struct drm_simple_display_pipe *pipe, struct drm_crtc_state *crtc,
			   struct drm_plane_state *state)
{
	static const u16 mode[][2] = {
		{ ENABLE, 0 },		     { BPP, 32 },	  { XRES, SCANOUT_WIDTH },
		{ YRES, SCANOUT_HEIGHT },    { BANK, 0 },	  { VIRT_WIDTH, SCANOUT_WIDTH },
		{ VIRT_HEIGHT, SCANOUT_HEIGHT }, { X_OFFSET, 0 }, { Y_OFFSET, 0 },
		{ ENABLE, 0x41 }, /* enabled, linear framebuffer */
	};
	struct drm_rect all = DRM_RECT_INIT(0, 0, SCANOUT_WIDTH, SCANOUT_HEIGHT);
	struct scanout *out = pipe->crtc.dev->dev_private;
	int index, i;

	if (!drm_dev_enter(out->drm, &index))
		return;
	writeb(0x20, out->registers + 0x400); /* 3c0: the attribute controller shows the picture */
	for (i = 0; i < ARRAY_SIZE(mode); i++)
		scanout_write(out, mode[i][0], mode[i][1]);
	if (state->fb)
		scanout_copy(out, state, &all);
	drm_dev_exit(index);
}

static void scanout_disable(struct drm_simple_display_pipe *pipe)
{
	struct scanout *out = pipe->crtc.dev->dev_private;
	int index;

	if (!drm_dev_enter(out->drm, &index))
		return;
	memset_io(out->vram, 0, SCANOUT_PITCH * SCANOUT_HEIGHT);
	drm_dev_exit(index);
}

static void scanout_update(struct drm_simple_display_pipe *pipe, struct drm_plane_state *old)
{
	struct scanout *out = pipe->crtc.dev->dev_private;
	struct drm_plane_state *state = pipe->plane.state;
	struct drm_rect area;
	int index;

	if (!state->fb || !drm_atomic_helper_damage_merged(old, state, &area))
		return;
	if (!drm_dev_enter(out->drm, &index))
		return;
	scanout_copy(out, state, &area);
	drm_dev_exit(index);
}

static enum drm_mode_status scanout_mode_valid(struct drm_simple_display_pipe *pipe,
					       const struct drm_display_mode *mode)
{
	bool fits = mode->hdisplay == SCANOUT_WIDTH && mode->vdisplay == SCANOUT_HEIGHT;

	return fits ? MODE_OK : MODE_BAD;
}

static const struct drm_simple_display_pipe_funcs scanout_pipe_funcs = {
	.enable = scanout_enable,
	.disable = scanout_disable,
	.update = scanout_update,
	.mode_valid = scanout_mode_valid,
	DRM_GEM_SIMPLE_DISPLAY_PIPE_SHADOW_PLANE_FUNCS,
};

static int scanout_modes(struct drm_connector *connector)
{
	int count = drm_add_modes_noedid(connector, SCANOUT_WIDTH, SCANOUT_HEIGHT);

	drm_set_preferred_mode(connector, SCANOUT_WIDTH, SCANOUT_HEIGHT);
	return count;
}

static const struct drm_connector_helper_funcs scanout_connector_helpers = {
	.get_modes = scanout_modes,
};

static const struct drm_connector_funcs scanout_connector_funcs = {
	.fill_modes = drm_helper_probe_single_connector_modes,
	.destroy = drm_connector_cleanup,
	.reset = drm_atomic_helper_connector_reset,
	.atomic_duplicate_state = drm_atomic_helper_connector_duplicate_state,
	.atomic_destroy_state = drm_atomic_helper_connector_destroy_state,
};

static const struct drm_mode_config_funcs scanout_mode_funcs = {
	.fb_create = drm_gem_fb_create_with_dirty,
	.atomic_check = drm_atomic_helper_check,
	.atomic_commit = drm_atomic_helper_commit,
};

/* An open node keeps the module: .owner is set (include/drm/drm_gem.h). */
DEFINE_DRM_GEM_FOPS(scanout_fops);

static const struct drm_driver scanout_driver = {
	.driver_features = DRIVER_GEM | DRIVER_MODESET | DRIVER_ATOMIC | DRIVER_RENDER,
	.fops = &scanout_fops,
	DRM_GEM_SHMEM_DRIVER_OPS,
	SCANOUT_FBDEV
	.name = SCANOUT_NAME,
	SCANOUT_DATE
	.desc = "Stand-in for " SCANOUT_NAME,
	.major = 1,
};

static void scanout_unmap(struct drm_device *drm, void *mapped)
{
	iounmap(mapped);
}

static int scanout_map(struct scanout *out, struct pci_dev *pdev)
{
	out->vram = ioremap_wc(pci_resource_start(pdev, 0), SCANOUT_PITCH * SCANOUT_HEIGHT);
	if (!out->vram)
		return -ENOMEM;
	if (drmm_add_action_or_reset(out->drm, scanout_unmap, out->vram))
		return -ENOMEM;
	out->registers = ioremap(pci_resource_start(pdev, 2), pci_resource_len(pdev, 2));
	if (!out->registers)
		return -ENOMEM;
	return drmm_add_action_or_reset(out->drm, scanout_unmap, out->registers);
}

static int scanout_fill(struct scanout *out)
{
	static const u32 formats[] = { DRM_FORMAT_XRGB8888 };
	struct drm_device *drm = out->drm;
	int error = drmm_mode_config_init(drm);

	if (error)
		return error;
	drm->mode_config.funcs = &scanout_mode_funcs;
	drm->mode_config.max_width = SCANOUT_WIDTH;
	drm->mode_config.max_height = SCANOUT_HEIGHT;
	drm->mode_config.preferred_depth = 24;

	drm_connector_helper_add(&out->connector, &scanout_connector_helpers);
	error = drm_connector_init(drm, &out->connector, &scanout_connector_funcs,
				   DRM_MODE_CONNECTOR_HDMIA);
	if (error)
		return error;
	error = drm_simple_display_pipe_init(drm, &out->pipe, &scanout_pipe_funcs, formats,
					     ARRAY_SIZE(formats), NULL, &out->connector);
	if (error)
		return error;
	drm_plane_enable_fb_damage_clips(&out->pipe.plane);
	drm_mode_config_reset(drm);
	return 0;
}

/* A device that is not registered yet. It goes with drm_dev_put() and its last open file. */
static struct scanout *scanout_create(struct pci_dev *pdev)
{
	struct drm_device *drm = drm_dev_alloc(&scanout_driver, &pdev->dev);
	struct scanout *out;
	int error;

	if (IS_ERR(drm))
		return ERR_CAST(drm);
	out = drmm_kzalloc(drm, sizeof(*out), GFP_KERNEL);
	error = out ? 0 : -ENOMEM;
	if (out) {
		out->drm = drm;
		drm->dev_private = out;
		error = scanout_map(out, pdev);
	}
	if (!error)
		error = scanout_fill(out);
	if (error) {
		drm_dev_put(drm);
		return ERR_PTR(error);
	}
	return out;
}

/* Give the device a framebuffer, and with it the consoles. */
static void scanout_show(struct scanout *out)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	drm_client_setup(out->drm, NULL);
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
	drm_fbdev_shmem_setup(out->drm, 32);
#else
	drm_fbdev_generic_setup(out->drm, 32);
#endif
}
