package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"

	"trivet/inject"
)

// handler answers the requests of a server. It has no state of its own.
type handler struct {
	target Target
	faults *inject.Set
	log    *slog.Logger
}

func newHandler(o Options) http.Handler {
	h := &handler{target: o.Target, faults: o.Faults, log: o.Log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, h.target.Status()) })
	mux.HandleFunc("GET /inflight", func(w http.ResponseWriter, _ *http.Request) { answer(w, orEmpty(h.target.Inflight())) })
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, _ *http.Request) { answer(w, orEmpty(h.target.Events())) })
	mux.HandleFunc("GET /faults", h.withFaults(h.listFaults))
	mux.HandleFunc("POST /faults", h.withFaults(h.addFault))
	mux.HandleFunc("DELETE /faults/{id}", h.withFaults(h.removeFault))
	mux.HandleFunc("POST /slots/{id}/replace", h.replaceSlot)
	mux.Handle("GET /metrics", newMetricsHandler(o.Target))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/", notFound)
	return http.MaxBytesHandler(mux, maxBodyBytes)
}

// withFaults refuses in one place when the volume takes no fault rules.
func (h *handler) withFaults(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if h.faults == nil {
			refuse(w, http.StatusNotImplemented, "this server takes no fault rules")
			return
		}
		next(w, r)
	}
}

func (h *handler) listFaults(w http.ResponseWriter, _ *http.Request) {
	answer(w, orEmpty(h.faults.List()))
}

func (h *handler) addFault(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		refuse(w, bodyStatus(err), fmt.Sprintf("read the rule: %v", err))
		return
	}
	rule, err := inject.Parse(string(body))
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	if rule.Site.Reserved() {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("nothing meets rules for %v in this version", rule.Site))
		return
	}
	id, err := h.faults.Add(rule)
	if err != nil {
		refuse(w, addStatus(err), err.Error())
		return
	}
	h.log.Info("fault added", "id", id, "rule", rule)
	answer(w, inject.Status{ID: id, Rule: rule})
}

func (h *handler) removeFault(w http.ResponseWriter, r *http.Request) {
	removed, err := h.remove(r.PathValue("id"))
	if err != nil {
		refuse(w, http.StatusNotFound, err.Error())
		return
	}
	h.log.Info("fault removed", "id", r.PathValue("id"), "count", removed)
	answer(w, Removed{Count: removed})
}

// remove ends the named rule, or all of them, and returns their number.
func (h *handler) remove(name string) (int, error) {
	if name == "all" {
		return h.faults.Clear(), nil
	}
	id, err := strconv.ParseUint(name, 10, 32)
	if err != nil || !h.faults.Remove(inject.ID(id)) {
		return 0, fmt.Errorf("no fault %q; the ids are listed by GET /faults, and 'all' removes every one", name)
	}
	return 1, nil
}

// Removed answers a DELETE.
type Removed struct {
	Count int `json:"removed"`
}

// Replaced answers the replacement of a slot.
type Replaced struct {
	Slot int `json:"replaced"`
}

func (h *handler) replaceSlot(w http.ResponseWriter, r *http.Request) {
	at, err := io.ReadAll(r.Body)
	if err != nil {
		refuse(w, bodyStatus(err), fmt.Sprintf("read the directory: %v", err))
		return
	}
	slot, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		refuse(w, http.StatusNotFound, fmt.Sprintf("no slot %q; they are numbered from 0 on", r.PathValue("id")))
		return
	}
	if err := h.target.ReplaceSlot(r.Context(), slot, strings.TrimSpace(string(at))); err != nil {
		refuse(w, http.StatusConflict, err.Error())
		return
	}
	h.log.Info("slot replaced", "slot", slot, "at", string(at))
	answer(w, Replaced{Slot: slot})
}

func notFound(w http.ResponseWriter, r *http.Request) {
	refuse(w, http.StatusNotFound, fmt.Sprintf("%s %s: not here; there are /status, /inflight, /events, "+
		"/faults, /slots/ID/replace, /metrics and /debug/pprof/", r.Method, r.URL.Path))
}

func bodyStatus(err error) int {
	var tooLong *http.MaxBytesError
	if errors.As(err, &tooLong) {
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusBadRequest
}

func addStatus(err error) int {
	if errors.Is(err, inject.ErrFull) {
		return http.StatusConflict
	}
	return http.StatusBadRequest
}

// refusal is the body of every answer that is not a success.
type refusal struct {
	Error string `json:"error"`
}

func refuse(w http.ResponseWriter, status int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	writeJSON(w, refusal{Error: reason})
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, value)
}

// writeJSON ignores errors: the client that went away is the only cause, and
// nobody is left to be told.
func writeJSON(w io.Writer, value any) {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(value)
}

// orEmpty makes a nil list print as [] rather than null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
