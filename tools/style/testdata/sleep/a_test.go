package sleep

import (
	"testing"
	"time"
)

func TestSlow(t *testing.T) { time.Sleep(time.Second) }
