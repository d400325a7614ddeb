// Package hostfiles copies files and folders of the host into a guest, which shares no file system with it.
//
// A plan lists what there is, within limits, and a copy reads it. Other programs change the files meanwhile, and a pod's
// user may own them: nothing outside the folder that was planned is ever read, whatever links are put in the way, and
// what has become something else than a file fails. Sockets, devices and pipes are refused: a copy of them would not do
// what they do.
//
// The copy itself needs nothing but CopyFile of Kata's agent protocol: files in pieces, folders, symbolic links.
package hostfiles
