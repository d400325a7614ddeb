package vfio

// Abandon lets go of a claim as the kernel does when its process is killed.
func (c *Claim) Abandon() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.held {
		if h.lock == nil {
			continue
		}
		if err := h.lock.Close(); err != nil {
			return err
		}
	}
	c.held, c.state = nil, stateRemoved
	return nil
}
