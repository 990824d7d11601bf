package edge

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
)

// A circle is known by the words of a node that refuses a player, and by those of another
// worker of this node, which has them with their cause.
func TestFailureKnowsACircle(t *testing.T) {
	resp := &http.Response{Status: "503 Service Unavailable"}
	for _, said := range []string{circleText, circle(fmt.Errorf("%w: through a to b", errCircle)).Error()} {
		if err := failure(resp, []byte(said+"\n")); !errors.Is(err, errCircle) {
			t.Errorf("%q is %v", said, err)
		}
	}
	if err := failure(resp, []byte("This node is full.")); errors.Is(err, errCircle) {
		t.Error(err)
	}
}
