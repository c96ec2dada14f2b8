-- How the text of a JSON value becomes a column: null is what does not fit. `raw` is text as `json_extract_string` gives it.

create macro is_blank(raw) as raw is null or (raw < '!' and trim(raw) = '');

-- A text that begins like most ids do: no blank, no number, no list, no object, nothing that JSON spells in several ways.
create macro is_plain(raw) as raw >= 'a' and raw < '{';

-- A text that is perhaps a list, an object, a number that the parser has spelled in its own way, or a number that is none. Not
-- what only begins like a number: half of all hexadecimal ids do, and a second look costs as much again as the first.
create macro is_doubtful(raw) as
raw = '0'
or (raw < ':' and (contains(raw, '.') or contains(raw, 'e')) and regexp_full_match(raw, '[-+0-9.eE]+'))
or starts_with(raw, '[')
or starts_with(raw, '{')
or raw in ('NaN', 'Infinity', '-Infinity');

-- A doubtful text once its JSON type is known. `spelled` is what stands in the line after the key.
create macro as_spelled(raw, type, spelled) as
case
    when type = 'VARCHAR' then raw
    when type in ('OBJECT', 'ARRAY') or raw in ('NaN', 'Infinity', '-Infinity') then null
    when try_cast(spelled as double) = try_cast(raw as double) then spelled
    else raw
end;

create macro as_number(raw) as
case when isfinite(try_cast(raw as double)) and not contains(raw, '_') then try_cast(raw as double) end;

create macro as_integer(raw) as
case when floor(as_number(raw)) = as_number(raw) and abs(as_number(raw)) < 2147483648 then cast(as_number(raw) as int) end;

create macro as_boolean(raw) as
case
    when lower(trim(raw)) in ('true', '1') then true
    when lower(trim(raw)) in ('false', '0') then false
end;

-- An epoch in microseconds. The units don't overlap between 1973 and 5138: 1e11 s lies in 5138, 1e11 ms in 1973, and so on.
create macro epoch_micros(number) as
case
    when abs(number) < 1e11 then round(number * 1e6)
    when abs(number) < 1e14 then round(number * 1e3)
    when abs(number) < 1e17 then round(number)
    when abs(number) < 1e20 then round(number / 1e3)
end;

-- UTC. Only what looks like ISO 8601 is cast, as DuckDB would take the names of zones too, and a timestamp without a zone
-- drops what stands after the time. Most logs end their times with Z, which is told at a glance.
create macro as_time(raw) as
case
    when ends_with(raw, 'Z') and right(raw, 2) < ':' then try_cast(raw as timestamp)
    when regexp_full_match(trim(raw), '\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d(:?\d\d)?)?)?')
        then timezone('UTC', try_cast(trim(raw) as timestamptz))
    else make_timestamp(cast(epoch_micros(as_number(raw)) as bigint))
end;

create macro as_texts(raw) as
case
    when len(list_filter(try_cast(try_cast(raw as json) as varchar[]), lambda text: text is null)) = 0
        then try_cast(try_cast(raw as json) as varchar[])
end;

create macro as_path(raw) as
case
    when starts_with(raw, '[') then as_texts(raw)
    when starts_with(raw, '{') then null
    else list_filter(list_transform(string_split(raw, '/'), lambda part: trim(part)), lambda part: part != '')
end;

create macro as_text_map(raw) as try_cast(try_cast(raw as json) as map (varchar, varchar));

create macro as_vector_map(raw) as
case
    when
        len(list_filter(
            map_values(try_cast(try_cast(raw as json) as map (varchar, float[]))),
            lambda vector: vector is null or len(list_filter(vector, lambda number: number is null or not isfinite(number))) > 0
        )) = 0
        then try_cast(try_cast(raw as json) as map (varchar, float[]))
end;
