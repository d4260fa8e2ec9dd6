//go:build ignore

// Shrink writes a PNG file with its 256 most frequent colours alone: go run shrink.go FROM TO
package main

import (
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"log"
	"os"
	"slices"
)

func main() {
	if err := shrink(os.Args[1], os.Args[2]); err != nil {
		log.Fatal("shrink: ", err)
	}
}

func shrink(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	picture, err := png.Decode(in)
	if err != nil {
		return err
	}
	size, count := picture.Bounds(), map[color.Color]int{}
	for y := size.Min.Y; y < size.Max.Y; y++ {
		for x := size.Min.X; x < size.Max.X; x++ {
			count[picture.At(x, y)]++
		}
	}
	var palette color.Palette
	for c := range count {
		palette = append(palette, c)
	}
	slices.SortFunc(palette, func(a, b color.Color) int { return count[b] - count[a] })
	small := image.NewPaletted(size, palette[:min(256, len(palette))])
	draw.Draw(small, size, picture, size.Min, draw.Src)
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(out, small); err != nil {
		return err
	}
	return out.Close()
}
