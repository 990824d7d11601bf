package worker

import (
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is how much later than they ask for the kernel may wake the threads of a
// child, so that several timers make one wake-up (prctl(2), PR_SET_TIMERSLACK). Nothing
// in a child needs timers to be more exact, but Go's runtime has a thread that sleeps
// for 20 µs at a time while others are busy: with the 50 µs that are usual it wakes a
// hundred times in 10 ms of sending to players, which cost a tenth of them.
const timerSlack = time.Millisecond

// startSlack starts a command with that slack. A process has it from the thread that
// made it, and gives it to all of its own threads. Where it cannot be set all works,
// at a higher price.
func startSlack(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) == nil {
		defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }() // this thread's own again
	}
	return cmd.Start()
}
