# --- containers: images that are volumes, and devices ---------------------------------------------------------------------------------
# The second part of rules.rego.
package agent_policy

import rego.v1

create_faults contains sprintf("an image is mounted as a volume at %s, and is not one of the pod's", [volume.mount_point]) if {
	some volume in object.get(input.coffer, "volumes", [])
	not volume_mounted(volume)
}

volume_mounted(volume) if {
	some mount in input.OCI.Mounts
	of_image(mount, volume)
}

# of_image holds for a mount that the manifest has from this image, and for the part of it that the manifest names. What was pulled is
# known at the second stage.
of_image(mount, volume) if {
	mount.type_ == "bind"
	c.mounts[mount.destination] == "image"
	wanted := c.images[mount.destination]
	mount.source == trim_suffix(concat("/", [volume.mount_point, wanted.path]), "/")
	volume.requested in {digest | some digest in array.concat(wanted.digests, [""])}
	pulled(volume, wanted)
}

pulled(_, _) if not known

pulled(volume, wanted) if volume.digest in wanted.digests

pulled(volume, wanted) if volume.target in wanted.digests

# The host chooses what is on a block device, and which of its GPUs the pod has: a guest attests GPUs itself.
create_faults contains sprintf("device %s", [device.container_path]) if {
	some device in input.devices
	not device_allowed(device)
}

device_allowed(device) if {
	device.type_ == "blk"
	device.container_path in c.devices
}

device_allowed(device) if {
	device.type_ == "vfio-pci-gk"
	startswith(device.container_path, "/dev/vfio/")
	c.gpus > 0
}

create_faults contains sprintf("device %s", [device.Path]) if {
	some device in object.get(input.OCI.Linux, "Devices", [])
	not node_allowed(device)
}

node_allowed(device) if {
	device.Type == "b"
	device.Path in c.devices
}

node_allowed(device) if {
	device.Type == "c"
	startswith(device.Path, "/dev/vfio/")
	c.gpus > 0
}

create_faults contains sprintf("disk %s of a device that is passed through", [name]) if {
	some name in object.get(input.coffer, "disks", [])
	not concat("", ["/dev/", name]) in c.devices
}

create_faults contains "more GPUs than the pod has" if {
	count([device | some device in input.devices; startswith(device.container_path, "/dev/vfio/")]) > c.gpus
}

create_faults contains sprintf("annotation %s", [key]) if {
	some key, value in annotations
	startswith(key, "cdi.k8s.io/")
	not gpu_named(key, value)
}

create_faults contains "annotations name more GPUs than the pod has" if {
	count({value | some key, value in annotations; startswith(key, "cdi.k8s.io/")}) > c.gpus
}

gpu_named(key, value) if {
	c.gpus > 0
	regex.match(`^cdi\.k8s\.io/vfio[0-9]+$`, key)
	regex.match(`^nvidia\.com/gpu=[0-9]+$`, value)
}
