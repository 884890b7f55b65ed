"""The drivers of devices for the fake kernel, because no snapshot has them.

tests/fakehost/pci.py says what the words mean.
"""

BOCHS = "driver=bochs-drm module=bochs fb=bochs-drmdrmfb bars=0,2 connectors=Virtual-1"
"""Of QEMU's VGA and bochs-display, which are the lab's GPUs."""

AMDGPU = "driver=amdgpu fb=amdgpudrmfb render=yes"
AST = "driver=ast fb=astdrmfb"
I915 = "driver=i915 fb=i915drmfb render=yes"
NVIDIA = "driver=nvidia fb=nvidia-drmdrmfb bars=0 render=yes"
NVIDIA_WITHOUT_FB = "driver=nvidia proc=no"
"""As the lab's stand-in: it reserves nothing, and shows nothing."""
RADEON = "driver=radeon fb=radeondrmfb render=yes"
STAND_INS = {
    "amdgpu": f"{AMDGPU} connectors=HDMI-A-1",
    "i915": f"{I915} connectors=HDMI-A-1",
    "nvidia": NVIDIA_WITHOUT_FB,
}
"""Of the lab's stand-ins for drivers, by their modules."""
SOUND = "driver=snd_hda_intel"
