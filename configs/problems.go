package configs

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// A Problem is one thing that is wrong with a configuration file.
type Problem struct {
	File string // as the user named it
	Line int    // from 1; for a key that is missing, the line of the section that lacks it
	Key  string // key path such as "play.max_lag" or "vhosts[0].name"; empty if it is about the file
	Text string // what is wrong and what would be right
}

// Error returns "FILE:LINE: KEY: TEXT".
func (p Problem) Error() string {
	if p.Key == "" {
		return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
	}
	return fmt.Sprintf("%s:%d: %s: %s", p.File, p.Line, p.Key, p.Text)
}

// Problems is everything that is wrong with one file, in the order of its lines.
// It is never empty.
type Problems []Problem

// Error returns one line per problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Prefix puts key in front of every error joined in err, for a parent's
// Validate: "max_lag: must be ..." becomes "play.max_lag: must be ...". The key
// of a list element is written with its index: Prefix("vhosts[2]", err). A nil
// err stays nil.
func Prefix(key string, err error) error {
	if err == nil {
		return nil
	}
	parts := flatten(err)
	joined := make([]error, len(parts))
	for i, part := range parts {
		dot := "."
		if strings.HasPrefix(part, "[") {
			dot = ""
		}
		joined[i] = errors.New(key + dot + part)
	}
	return errors.Join(joined...)
}

// flatten returns the messages of the errors joined in err. Text that a wrapping
// error puts in front of a join goes in front of each of its messages.
func flatten(err error) []string {
	text := err.Error()
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		var parts, own []string
		for _, child := range e.Unwrap() {
			parts = append(parts, flatten(child)...)
			own = append(own, child.Error())
		}
		if strings.Join(own, "\n") == text {
			return parts
		}
	case interface{ Unwrap() error }:
		inner := e.Unwrap()
		if inner == nil {
			break
		}
		if prefix, ok := strings.CutSuffix(text, inner.Error()); ok {
			parts := flatten(inner)
			if len(parts) > 1 {
				for i := range parts {
					parts[i] = prefix + parts[i]
				}
				return parts
			}
		}
	}
	return []string{strings.ReplaceAll(text, "\n", "; ")}
}

var keyPath = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.*\[\]-]*: `)

// validation adds the errors that Validate returned, each at the line of its
// key, unless the decoder has already complained about that key.
func (d *decoder) validation(err error) {
	decoded := len(d.problems)
next:
	for _, message := range flatten(err) {
		p := d.locate(message)
		for _, known := range d.problems[:decoded] {
			if p.Key != "" && known.Key == p.Key {
				continue next
			}
		}
		d.problems = append(d.problems, p)
	}
}

// locate splits the message of a Validate into the key path that it begins with
// and the rest, and finds the line of that key, or of the nearest section around
// it that the file has.
func (d *decoder) locate(message string) Problem {
	p := Problem{File: d.file, Line: d.lines[""], Text: message}
	// The longest path of the file that the message begins with. Keys of maps may
	// hold dots, colons and spaces, so that only the file tells where a path ends.
	known := ""
	for path := range d.lines {
		if len(path) > len(known) && strings.HasPrefix(message, path) && len(message) > len(path) &&
			strings.IndexByte(":.[", message[len(path)]) >= 0 {
			known = path
		}
	}
	rest := message[len(known):]
	switch {
	case known != "":
		p.Line = d.lines[known]
		if key, text, ok := strings.Cut(rest, ": "); ok {
			p.Key, p.Text = known+key, text
		} else {
			p.Key, p.Text = known, strings.TrimLeft(rest, ":. ")
		}
	case keyPath.MatchString(message):
		p.Key, p.Text, _ = strings.Cut(message, ": ")
	default:
		return p
	}
	// "play: max_lag: ..." says the same as "play.max_lag: ...".
	for keyPath.MatchString(p.Text) {
		key, text, _ := strings.Cut(p.Text, ": ")
		line, ok := d.lines[p.Key+"."+key]
		if !ok {
			break
		}
		p.Key, p.Text, p.Line = p.Key+"."+key, text, line
	}
	return p
}

// result returns the problems in line order, free of secrets, or nil.
func (d *decoder) result() error {
	if len(d.problems) == 0 {
		return nil
	}
	for i := range d.problems {
		for _, s := range d.secrets {
			d.problems[i].Text = s.redact(d.problems[i].Text)
		}
	}
	slices.SortStableFunc(d.problems, func(a, b Problem) int { return a.Line - b.Line })
	return Problems(d.problems)
}

// oneOf lists allowed values in words: "a, b or c".
func oneOf(values []string) string {
	if len(values) < 2 {
		return strings.Join(values, "")
	}
	last := len(values) - 1
	return strings.Join(values[:last], ", ") + " or " + values[last]
}

// nearest returns the candidate that word was most likely meant to be, or "".
func nearest(word string, candidates []string) string {
	best, least := "", 2
	if len(word) >= 4 { // two: neighbours swapped
		least = max(2, len(word)/3) + 1
	}
	for _, c := range candidates {
		if n := distance(word, c); n < least {
			best, least = c, n
		}
	}
	return best
}

// distance is the number of bytes to insert, delete or replace (Levenshtein) to
// get from a to b. Long words are not compared: it is only for suggestions.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
