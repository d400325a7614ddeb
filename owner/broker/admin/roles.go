package admin

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// Role is what an admin's key is for.
type Role string

// The roles.
const (
	// RoleAdmin may do everything.
	RoleAdmin Role = "admin"
	// RoleResources may list and change resources: for whoever encrypts images.
	RoleResources Role = "resources"
	// RolePolicies may read and change policies.
	RolePolicies Role = "policies"
	// RoleReferences may read and change reference values: for whoever builds guests.
	RoleReferences Role = "references"
	// RoleAuditor may read all that an admin can read, and change nothing.
	RoleAuditor Role = "auditor"
)

// Permission is one thing that an admin may do.
type Permission string

// The permissions. Resources themselves are given to attested guests only: no permission reads them.
const (
	ReadStatus      Permission = "read the status"
	ListResources   Permission = "list resources"
	WriteResources  Permission = "change resources"
	ReadPolicies    Permission = "read policies"
	WritePolicies   Permission = "change policies"
	ReadReferences  Permission = "read reference values"
	WriteReferences Permission = "change reference values"
)

var permissions = map[Role][]Permission{
	RoleAdmin:      {ReadStatus, ListResources, WriteResources, ReadPolicies, WritePolicies, ReadReferences, WriteReferences},
	RoleResources:  {ReadStatus, ListResources, WriteResources},
	RolePolicies:   {ReadStatus, ReadPolicies, WritePolicies},
	RoleReferences: {ReadStatus, ReadReferences, WriteReferences},
	RoleAuditor:    {ReadStatus, ListResources, ReadPolicies, ReadReferences},
}

// Validate returns InvalidArgument for an unknown role.
func (r Role) Validate() error {
	if _, ok := permissions[r]; !ok {
		return fmt.Errorf("unknown role %q, want admin, resources, policies, references or auditor: %w", string(r), errdefs.ErrInvalidArgument)
	}
	return nil
}

// Identity is an admin whose token was good.
type Identity struct {
	// Name is what the audit log calls the admin.
	Name  string
	Roles []Role
}

// Check returns PermissionDenied unless one of the admin's roles has the permission.
func (i Identity) Check(p Permission) error {
	for _, role := range i.Roles {
		if slices.Contains(permissions[role], p) {
			return nil
		}
	}
	return fmt.Errorf("admin %s may not %s: none of the roles of its key allows that: %w", i.Name, p, errdefs.ErrPermissionDenied)
}
