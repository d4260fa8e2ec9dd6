//go:build unix

// Volume hands a directory to user 65532 and goes on as that user with another program: a volume on Fly belongs to
// root, and the receiver shall not run as root.
//
//	volume DIRECTORY PROGRAM [ARGUMENT...]
package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const nonroot = 65532 // the user of that name in the distroless images, and its group

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: volume DIRECTORY PROGRAM [ARGUMENT...]")
		os.Exit(2)
	}
	err := handOver(os.Args[1], os.Args[2:])
	fmt.Fprintf(os.Stderr, "volume: hand %s to user %d and run %s: %v\n", os.Args[1], nonroot, os.Args[2], err)
	os.Exit(1)
}

// handOver returns only if it fails.
func handOver(directory string, program []string) error {
	err := filepath.WalkDir(directory, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, nonroot, nonroot)
	})
	if err != nil {
		return err
	}
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setgid(nonroot); err != nil {
		return err
	}
	if err := syscall.Setuid(nonroot); err != nil {
		return err
	}
	return syscall.Exec(program[0], program, os.Environ())
}
