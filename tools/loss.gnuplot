# Draws the demo's picture from the CSV monitor's files.
# Called with the variables loss, scale (may be empty) and picture.
set terminal pngcairo size 960,540 font 'sans,11'
set output picture
set datafile separator ','
set key top right opaque
set grid ytics lc rgb '#dddddd'
set border 3
set xlabel 'step'
set ylabel 'loss (nats per byte)'
set tics nomirror
# The files count samples; their first row is the first step.
stats loss using 1 every ::1 nooutput name 'samples'
batch = samples_min
# A file that several runs were written to: where the samples fall, a new line
# begins (at the new run's second point).
before = -1
falls(x) = (fell = x <= before, before = x, fell)
scale_before = -1
scale_falls(x) = (fell = x <= scale_before, scale_before = x, fell)
if (strlen(scale) > 0) {
  set border 11
  set y2label 'loss scale'
  set logscale y2 2
  set format y2 '2^{%L}'
  set y2tics 2
  stats scale using 2 every ::1 nooutput name 'scales'
  set y2range [scales_min / 2 : scales_max * 4]
  plot loss using ($1 / batch):(falls($1) ? NaN : $2) every ::1 with lines lw 2 lc rgb '#1f6fb4' title 'loss', \
       scale using ($1 / batch):(scale_falls($1) ? NaN : $2) every ::1 axes x1y2 with steps lw 1.5 lc rgb '#d97a1a' title 'loss scale'
} else {
  plot loss using ($1 / batch):(falls($1) ? NaN : $2) every ::1 with lines lw 2 lc rgb '#1f6fb4' title 'loss'
}
