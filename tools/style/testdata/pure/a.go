// Package pure claims to be a core and has a clock.
package pure

//trivet:pure

import "time"

func now() time.Time { return time.Now() }
