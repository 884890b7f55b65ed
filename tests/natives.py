"""The drivers of devices for the fake kernel, because no snapshot has them.

tests/fakehost/pci.py says what the words mean.
"""

BOCHS = "driver=bochs-drm module=bochs fb=bochs-drmdrmfb bars=0,2 connectors=Virtual-1"
"""Of QEMU's VGA and bochs-display, which are the lab's GPUs."""

AMDGPU = "driver=amdgpu fb=amdgpudrmfb render=yes"
AST = "driver=ast fb=astdrmfb"
I915 = "driver=i915 fb=i915drmfb render=yes"
NVIDIA = "driver=nvidia fb=nvidia-drmdrmfb bars=0 render=yes"
RADEON = "driver=radeon fb=radeondrmfb render=yes"
STAND_INS = {
    "amdgpu": f"{AMDGPU} connectors=HDMI-A-1",
    "i915": f"{I915} connectors=HDMI-A-1 master=yes",  # i915_driver_hw_probe()
    "nvidia": "driver=nvidia fb=nvidia-drmdrmfb bars=2 render=yes connectors=HDMI-A-1 irq=24",
}
"""Of the lab's stand-ins for drivers, by their modules."""
STAND_IN_MODULES = {
    "nvidia": "nodes=dev/nvidia0,dev/nvidia1,dev/nvidiactl alone=no",
    "nvidia_modeset": "needs=nvidia nodes=dev/nvidia-modeset",
    "nvidia_drm": "needs=nvidia_modeset shows=nvidia",
    "nvidia_uvm": "needs=nvidia nodes=dev/nvidia-uvm",
}
"""What tests/fakehost/modules.py has to know of them."""
SOUND = "driver=snd_hda_intel"
