package containers

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// withUser returns the JSON of an OCI specification with the ids of its process replaced, or nil when they are these
// already. All else stays as it is, also what this program does not know. A specification without a process fails with
// errdefs.ErrFailedPrecondition.
func withUser(raw []byte, user specs.User) ([]byte, error) {
	var found struct{ Process *struct{ User specs.User } }
	if err := json.Unmarshal(raw, &found); err != nil {
		return nil, fmt.Errorf("decode specification: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if found.Process == nil {
		return nil, fmt.Errorf("specification has no process: %w", errdefs.ErrFailedPrecondition)
	}
	if Same(found.Process.User, user) {
		return nil, nil
	}
	return edit(raw, func(spec object) (err error) {
		spec["process"], err = edit(spec["process"], func(process object) (err error) {
			process["user"], err = edit(process["user"], func(ids object) error { return setIDs(ids, user) })
			return err
		})
		return err
	})
}

func setIDs(ids object, user specs.User) error {
	delete(ids, "additionalGids")
	values := map[string]any{"uid": user.UID, "gid": user.GID}
	if len(user.AdditionalGids) > 0 {
		values["additionalGids"] = user.AdditionalGids
	}
	for name, value := range values {
		encoded, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("encode %s: %w", name, err)
		}
		ids[name] = encoded
	}
	return nil
}

// object is a JSON object whose members stay as they are until somebody replaces them.
type object map[string]json.RawMessage

// edit changes members of an object; one that is missing or null counts as empty.
func edit(raw json.RawMessage, change func(object) error) (json.RawMessage, error) {
	var members object
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &members); err != nil {
			return nil, fmt.Errorf("decode specification: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
	}
	if members == nil {
		members = object{}
	}
	if err := change(members); err != nil {
		return nil, err
	}
	return json.Marshal(members)
}

// Same tells whether two users have the same ids, whatever the order of their groups.
func Same(a, b specs.User) bool {
	groups := func(u specs.User) []uint32 { return slices.Compact(slices.Sorted(slices.Values(u.AdditionalGids))) }
	return a.UID == b.UID && a.GID == b.GID && slices.Equal(groups(a), groups(b))
}
