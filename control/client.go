package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"trivet/inject"
)

// maxAnswerBytes bounds what a client reads of one answer.
const maxAnswerBytes = 16 << 20

// Refusal is an answer of the server that says no.
type Refusal struct {
	StatusCode int    // of HTTP
	Reason     string // one line
}

// Error returns the server's line.
func (r *Refusal) Error() string { return r.Reason }

// ErrUnreachable is wrapped when nobody answers on the control socket.
var ErrUnreachable = errors.New("no server answers")

// Client asks the server behind one control socket. It is safe for use by
// several goroutines.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client of the unix socket at path. It does not connect
// before it is used.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: http.Client{
		Transport: &http.Transport{DialContext: dial, MaxIdleConns: 1, IdleConnTimeout: idleTimeout},
		Timeout:   10 * time.Second,
	}}
}

// Close releases the idle connection.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns the volume's status.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, http.MethodGet, "/status", "", &s)
}

// Inflight returns the requests that have not completed.
func (c *Client) Inflight(ctx context.Context) (list []Inflight, err error) {
	return list, c.call(ctx, http.MethodGet, "/inflight", "", &list)
}

// Events returns what happened last.
func (c *Client) Events(ctx context.Context) (list []Event, err error) {
	return list, c.call(ctx, http.MethodGet, "/events", "", &list)
}

// Faults returns the rules in force.
func (c *Client) Faults(ctx context.Context) (list []inject.Status, err error) {
	return list, c.call(ctx, http.MethodGet, "/faults", "", &list)
}

// AddFault puts a rule in force and returns it as the server understood it.
func (c *Client) AddFault(ctx context.Context, rule string) (f inject.Status, err error) {
	return f, c.call(ctx, http.MethodPost, "/faults", rule, &f)
}

// RemoveFault ends the rule with this id, or every rule when id is 'all', and
// returns how many ended.
func (c *Client) RemoveFault(ctx context.Context, id string) (int, error) {
	var removed Removed
	err := c.call(ctx, http.MethodDelete, "/faults/"+url.PathEscape(id), "", &removed)
	return removed.Count, err
}

// ReplaceSlot makes a new slot in the place of one, in a directory, or where the
// old one was if that is empty. It returns once the slot is made.
func (c *Client) ReplaceSlot(ctx context.Context, slot int, at string) error {
	return c.call(ctx, http.MethodPost, fmt.Sprintf("/slots/%d/replace", slot), at, new(Replaced))
}

// call sends one request and decodes the answer. Errors are a *Refusal, wrap
// ErrUnreachable, or tell of an answer that could not be read.
func (c *Client) call(ctx context.Context, method, path, body string, into any) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://trivet"+path, strings.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return fmt.Errorf("control socket %s: %w: %w", c.path, ErrUnreachable, cause(err))
	}
	defer response.Body.Close()
	decoder := json.NewDecoder(io.LimitReader(response.Body, maxAnswerBytes))
	if response.StatusCode != http.StatusOK {
		return readRefusal(response, decoder)
	}
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("control socket %s: %s %s: answer: %w", c.path, method, path, err)
	}
	return nil
}

func readRefusal(response *http.Response, decoder *json.Decoder) error {
	var r refusal
	if err := decoder.Decode(&r); err != nil || r.Error == "" {
		r.Error = "the server answered " + response.Status
	}
	return &Refusal{StatusCode: response.StatusCode, Reason: r.Error}
}

// cause strips the made-up URL and the repeated path that net/http and net put
// in front of what went wrong.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	var outer *url.Error
	if errors.As(err, &outer) {
		return outer.Err
	}
	return err
}
