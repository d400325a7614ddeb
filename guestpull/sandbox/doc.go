// Package sandbox is the pod as the guest sees it: the namespaces, the shared memory and the volumes that its containers have in
// common, its name servers, and the news about containers that ran out of memory.
//
// There is one sandbox in the life of a guest:
//
//	none --Create--> created --Destroy--> destroyed
//
// A guest that has run a pod is not used for another one: what the first has left in memory must not meet the second. A Create that
// fails leaves none and may be repeated; a Destroy that fails may be repeated.
//
// Network cards, routes and copied files are set up by packages network and files; this package does not know them.
package sandbox
