// Package reclaim reaches into the request path.
package reclaim

import _ "trivet/shard"
