// Package chart draws the results of benchmarks as SVG that reads well on light and dark pages.
package chart

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"
)

// Bars is a chart of horizontal bars in groups; all bars share one scale.
type Bars struct {
	Title, Note string
	// Unit stands behind each value.
	Unit   string
	Groups []Group
}

// Group is what is compared with each other.
type Group struct {
	Name string
	Bars []Bar
}

// Bar is one value. Bars of the same name have the same colour in all groups.
type Bar struct {
	Name  string
	Value float64
}

const (
	width, left, right  = 900, 190, 90
	barHeight, groupGap = 18, 26
	top                 = 70
)

var colours = []string{"#8a8f98", "#2f7ed8", "#d87a2f", "#4aa564", "#9b59b6", "#c0392b"}

// SVG draws the chart.
func (c Bars) SVG() []byte {
	var (
		body   bytes.Buffer
		scale  float64
		colour = map[string]string{}
		y      = top
	)
	for _, g := range c.Groups {
		for _, b := range g.Bars {
			scale = max(scale, b.Value)
			if colour[b.Name] == "" {
				colour[b.Name] = colours[len(colour)%len(colours)]
			}
		}
	}
	if scale == 0 {
		scale = 1
	}
	for _, g := range c.Groups {
		fmt.Fprintf(&body, "<text x=\"10\" y=\"%d\" font-weight=\"bold\">%s</text>\n", y, escape(g.Name))
		y += 6
		for _, b := range g.Bars {
			length := b.Value / scale * (width - left - right)
			fmt.Fprintf(&body, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", left-8, y+barHeight-5, escape(b.Name))
			fmt.Fprintf(&body, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", left, y+2, length, barHeight-4, colour[b.Name])
			fmt.Fprintf(&body, "<text x=\"%.1f\" y=\"%d\">%.2f %s</text>\n", left+length+6, y+barHeight-5, b.Value, escape(c.Unit))
			y += barHeight
		}
		y += groupGap
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#6b7280\">\n", width, y)
	fmt.Fprintf(&out, "<text x=\"10\" y=\"22\" font-size=\"16\">%s</text>\n<text x=\"10\" y=\"42\">%s</text>\n", escape(c.Title), escape(c.Note))
	out.Write(body.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}

func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a builder takes everything
	return b.String()
}
