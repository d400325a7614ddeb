// Package rego evaluates a broker's policies, which are written in Rego as Trustee's are. A policy can compute and look things up in what
// it is given; it can reach neither network nor files nor the process, and its time is bounded. What an admin wrote wrongly is reported
// when it is handed in: a policy that does not compile is never kept.
package rego
