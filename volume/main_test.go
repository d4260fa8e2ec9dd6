//go:build unix

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

func TestHandsTheDirectoryOver(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: only root can hand a directory to another user")
	}
	dir := t.TempDir()
	for _, open := range []string{dir, filepath.Dir(dir)} { // the test's own are closed to others
		if err := os.Chmod(open, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	volume := filepath.Join(dir, "lost+found")
	if err := os.Mkdir(volume, 0o700); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "volume")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(binary, volume, "/bin/sh", "-c", "id -u; id -g; id -G; cd "+volume+" && echo x > receiver.db").CombinedOutput()
	if err != nil || string(out) != "65532\n65532\n65532\n" {
		t.Fatalf("got %q, %v", out, err)
	}
	info, err := os.Stat(filepath.Join(volume, "receiver.db"))
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != nonroot {
		t.Errorf("the file is not the user's: %v, %v", info, err)
	}
}
