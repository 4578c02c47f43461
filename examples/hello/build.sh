# Runs in Nix's sandbox, which has a shell and nothing beside it.
for file in $files; do
  lines=0 text=
  while IFS= read -r line || [ -n "$line" ]; do
    lines=$((lines + 1)) text="$text$line"
  done <"$file"
  if [ -z "$text" ]; then
    echo "${file##*/} is empty" >&2
    exit 1
  fi
  echo "${file##*-}: $lines lines"
done
echo "$name: everything is there"
echo "$files" >"$out"
