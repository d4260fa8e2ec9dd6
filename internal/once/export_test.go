package once

// SetLimit makes s remember less.
func (s *Memory) SetLimit(bytes int) { s.limit = bytes }
