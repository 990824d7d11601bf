#!/usr/bin/env bash
# Makes the looping test clip that weir carries (internal/clip/clip.flv).
#
# Run it only to change the clip: the result is committed, so that neither the
# build nor the demo needs ffmpeg. Needs ffmpeg with libx264, and drawtext with
# a font for the running clock (without them the clip has no clock and the
# script says so).
#
# The clip loops without a seam:
#   - 16 s are 8 closed GOPs of 50 frames at 25 frames/s, and exactly 750 AAC
#     frames of 1024 samples at 48 kHz, so audio and video end together;
#   - there are no B-frames, so that decoding order is display order and both
#     kinds start at 0;
#   - the tone is periodic in 16 s, and the 750 AAC frames are the second of
#     three rounds, so that the first frame continues the last one;
#   - there is no end-of-sequence tag and no duration in onMetaData, which would
#     both be wrong in the middle of a live stream;
#   - the frequency of the tone moves all the time, so that no two tags have the
#     same body and a test can tell from one tag where in the clip it is.
set -euo pipefail
cd "$(dirname "$0")/.."

out=internal/clip/clip.flv
seconds=16
aac_frames=$((seconds * 48000 / 1024))
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

clock=
font=$(fc-match -f '%{file}' 'monospace:bold' 2>/dev/null || true)
filters=$(ffmpeg -hide_banner -filters 2>/dev/null)
if [ -f "$font" ] && [[ $filters == *" drawtext "* ]]; then
	text="fontfile=$font:fontcolor=white:box=1:boxcolor=black@0.7:boxborderw=8:x=(w-text_w)/2"
	clock=",drawtext=$text:fontsize=30:y=h-112:text='weir test clip'"
	clock+=",drawtext=$text:fontsize=44:y=h-62:text='%{eif\\:t\\:d\\:2} s  frame %{eif\\:n\\:d\\:3}'"
else
	echo "make-clip: no drawtext filter or no font: the clip gets no clock" >&2
fi

ffmpeg -hide_banner -loglevel error -nostdin -y \
	-f lavfi -i "testsrc2=size=640x360:rate=25:duration=$seconds$clock" \
	-c:v libx264 -profile:v main -level 3.0 -pix_fmt yuv420p -preset veryslow -tune animation \
	-bf 0 -g 50 -keyint_min 50 -sc_threshold 0 -flags +cgop -crf 27 -maxrate 360k -bufsize 360k \
	-threads 1 -flags +bitexact -bsf:v filter_units=remove_types=6 "$tmp/video.mp4"

# Left: a tone that glides around 440 Hz. Right: the same a fifth higher. Both:
# a tick at each full second.
glide="440*t+160*sin(2*PI*t/$seconds)"
tick="0.25*sin(2*PI*1760*t)*lt(mod(t\\,1)\\,0.06)"
ffmpeg -hide_banner -loglevel error -nostdin -y \
	-f lavfi -i "aevalsrc='0.12*sin(2*PI*($glide))+$tick|0.12*sin(3*PI*($glide))+$tick':s=48000:d=$((3 * seconds))" \
	-c:a aac -b:a 64k -flags +bitexact -f adts "$tmp/audio.aac"

# Frame 0 holds the encoder's delay; the second round starts one frame later
# than its place in the tone.
start=$(awk "BEGIN { printf \"%.6f\", ($aac_frames + 0.5) * 1024 / 48000 }")
ffmpeg -hide_banner -loglevel error -nostdin -y \
	-i "$tmp/audio.aac" -ss "$start" -frames:a "$aac_frames" -c copy \
	-avoid_negative_ts make_zero "$tmp/audio.m4a"

ffmpeg -hide_banner -loglevel error -nostdin -y \
	-i "$tmp/video.mp4" -i "$tmp/audio.m4a" -map 0:v -map 1:a -map_metadata -1 -c copy \
	-metadata title="weir test clip" -fflags +bitexact \
	-flvflags no_duration_filesize+no_sequence_end "$out"

echo "$out: $(stat -c %s "$out") bytes"
