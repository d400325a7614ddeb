package config

// Volumes says what becomes of the host's files and of volumes in memory.
type Volumes struct {
	// MaxCopyMiB and MaxCopyFiles bound what one mount of a container copies into the guest's memory.
	MaxCopyMiB   uint32 `toml:"max_copy_mib"`
	MaxCopyFiles uint32 `toml:"max_copy_files"`
	// EmptyDirMiB is the size of an emptyDir for which the kubelet names none; 0 means half of the guest's memory.
	EmptyDirMiB uint32 `toml:"emptydir_mib"`
}

// Limits of Volumes. A guest takes no more than 65536 files of all its containers.
const (
	maxCopyMiB   = 65536
	maxCopyFiles = 65536
)

func (c *Config) validateVolumes(fault faultFunc) {
	v := &c.Volumes
	if v.MaxCopyMiB < 1 || v.MaxCopyMiB > maxCopyMiB {
		fault("volumes.max_copy_mib", "%d is not between 1 and %d", v.MaxCopyMiB, maxCopyMiB)
	}
	if v.MaxCopyFiles < 1 || v.MaxCopyFiles > maxCopyFiles {
		fault("volumes.max_copy_files", "%d is not between 1 and %d", v.MaxCopyFiles, maxCopyFiles)
	}
	if v.EmptyDirMiB > maxMemoryMiB {
		fault("volumes.emptydir_mib", "%d is more than %d", v.EmptyDirMiB, maxMemoryMiB)
	}
}
