package config

import (
	_ "embed" // the sample
	"fmt"
	"io"
)

//go:embed shim.toml
var sample []byte

// WriteDefault writes the complete, commented configuration that Default stands for. The same text is the committed
// sample contrib/config/shim.toml.
func WriteDefault(w io.Writer) error {
	if _, err := w.Write(sample); err != nil {
		return fmt.Errorf("write default configuration: %w", err)
	}
	return nil
}
