// Package broken has the tests of the chaos checker itself: builds of weir that
// break a promise, each by one change of its source, must fail it.
package broken
