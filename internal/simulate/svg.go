package simulate

import (
	"bytes"
	"fmt"
	"io"
)

// WriteSVG draws players, nodes and load over the day.
func (r *Result) WriteSVG(w io.Writer) error {
	const width, height, left, right, top, gap = 900, 190, 80, 20, 40, 40
	hours := float64(max(1, r.Day.Hours))
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", width, top+3*(height+gap))
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/><text x="%d" y="20" font-size="15">A day of %d players at most on up to %d nodes, policy %s</text>`+"\n",
		left, r.Day.Players, r.Day.Nodes, r.Day.Schedule.Policy)
	type line struct {
		color string
		of    func(Sample) float64
	}
	plot := func(number int, title, format string, most float64, lines ...line) {
		y0 := top + number*(height+gap)
		x := func(h float64) float64 { return left + h/hours*(width-left-right) }
		y := func(v float64) float64 { return float64(y0) + height - min(1, v/most)*height }
		fmt.Fprintf(&b, `<text x="%d" y="%d">%s</text>`+"\n", left, y0-5, title)
		for i := range 5 {
			v := most * float64(i) / 4
			fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">`+format+`</text>`+"\n", left, y(v), width-right, left-6, y(v)+4, v)
		}
		for h := 0.0; h <= hours; h += 3 {
			fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle" fill="#666">%.0f h</text>`+"\n", x(h), y0+height+15, h)
		}
		for _, l := range lines {
			fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, l.color)
			for _, s := range r.Samples {
				fmt.Fprintf(&b, "%.1f,%.1f ", x(s.At.Hours()), y(l.of(s)))
			}
			b.WriteString("\"/>\n")
		}
	}
	plot(0, "players", "%.0f", float64(r.Day.Players), line{"#1565c0", func(s Sample) float64 { return float64(s.Players) }})
	plot(1, `nodes: <tspan fill="#2e7d32">that take players</tspan>, <tspan fill="#aaa">that run</tspan>`, "%.0f", float64(r.Day.Nodes),
		line{"#aaa", func(s Sample) float64 { return float64(s.All) }}, line{"#2e7d32", func(s Sample) float64 { return float64(s.Up) }})
	plot(2, `load: <tspan fill="#2e7d32">mean</tspan>, <tspan fill="#c62828">highest of a node</tspan>`, "%.2f", 1,
		line{"#c62828", func(s Sample) float64 { return s.Max }}, line{"#2e7d32", func(s Sample) float64 { return s.Mean }})
	b.WriteString("</svg>\n")
	_, err := w.Write(b.Bytes())
	return err
}
