package config

// Scratch says which disk a pod's guest gets for what does not fit into its memory. The guest encrypts it.
type Scratch struct {
	// DefaultMiB is the disk's size, 0 for none. MaxMiB is the most that a pod may ask for.
	DefaultMiB uint32 `toml:"default_mib"`
	MaxMiB     uint32 `toml:"max_mib"`
	// Dir is where the disks' files are made, which have no name there and end with their VM.
	Dir string `toml:"dir"`
	// Protection is encrypted or authenticated.
	Protection Protection `toml:"protection"`
}

// Protection is what a scratch disk's content is protected from.
type Protection string

// Protections.
const (
	// ProtectionEncrypted keeps the host from reading, ProtectionAuthenticated also from changing what is stored.
	ProtectionEncrypted     Protection = "encrypted"
	ProtectionAuthenticated Protection = "authenticated"
)

// Limits of Scratch.
const (
	minScratchMiB = 64
	maxScratchMiB = 16 << 20 // 16 TiB
)

func (c *Config) validateScratch(fault faultFunc) {
	s := &c.Scratch
	checkEnum(fault, "scratch.protection", s.Protection, ProtectionEncrypted, ProtectionAuthenticated)
	if s.MaxMiB < minScratchMiB || s.MaxMiB > maxScratchMiB {
		fault("scratch.max_mib", "%d is not between %d and %d", s.MaxMiB, minScratchMiB, maxScratchMiB)
	}
	if s.DefaultMiB != 0 && (s.DefaultMiB < minScratchMiB || s.DefaultMiB > s.MaxMiB) {
		fault("scratch.default_mib", "%d is neither 0 nor between %d and max_mib (%d)", s.DefaultMiB, minScratchMiB, s.MaxMiB)
	}
}
