/* JSON, as much as the protocol needs: a line becomes a tree of values; texts are unescaped where they stand. */
#ifndef JSON_H
#define JSON_H
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Json {
    enum { NOTHING, FLAG, NUMBER, TEXT, LIST, OBJECT } kind;
    char *key;                 /* in an object */
    const char *text;          /* of a text */
    long long number;          /* of a number (an integer), or flag */
    long count;                /* of a list or object */
    struct Json *first, *next; /* of a list or object; beside */
} Json;

typedef struct { char *at; Json *free; } Reader;

static void refuse(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(2);
}

static char *token(Reader *r) { /* the next that is no space */
    while (isspace((unsigned char)*r->at)) r->at++;
    return r->at;
}

static void expect(Reader *r, char c) {
    if (*token(r) != c) refuse("not the JSON of a request");
    r->at++;
}

static char *read_text(Reader *r) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    expect(r, '"');
    char *text = r->at, *end = text;
    for (; *r->at != '"'; r->at++) {
        if (*r->at == 0) refuse("a text without end");
        if (*r->at != '\\') { *end++ = *r->at; continue; }
        const char *escape = *++r->at ? strchr(from, *r->at) : NULL;
        *end++ = escape ? to[escape - from] : '?'; /* \uXXXX: nothing here is named so */
    }
    r->at++;
    *end = 0;
    return text;
}

static Json *read_value(Reader *r, int depth) {
    Json *value = r->free++, **last = &value->first;
    char open = *token(r);
    if (depth > 32) refuse("JSON too deep");
    if (open == '"') {
        value->kind = TEXT;
        value->text = read_text(r);
    } else if (open == '[' || open == '{') {
        char close = open == '[' ? ']' : '}';
        value->kind = open == '[' ? LIST : OBJECT;
        r->at++;
        while (*token(r) != close) {
            if (value->count++) expect(r, ',');
            char *key = NULL;
            if (open == '{') { token(r); key = read_text(r); expect(r, ':'); }
            *last = read_value(r, depth + 1);
            (*last)->key = key;
            last = &(*last)->next;
        }
        r->at++;
    } else if (!strncmp(r->at, "true", 4) || !strncmp(r->at, "false", 5) || !strncmp(r->at, "null", 4)) {
        value->kind = open == 'n' ? NOTHING : FLAG;
        value->number = open == 't';
        r->at += open == 'f' ? 5 : 4;
    } else {
        char *end;
        value->kind = NUMBER;
        value->number = strtoll(r->at, &end, 10);
        if (end == r->at) refuse("not the JSON of a request");
        r->at = end;
    }
    return value;
}

/* The tree of a line, to be freed as one; every value but the first follows one of [ , : and so they are counted. */
static Json *read_json(char *line) {
    size_t values = 2;
    for (char *c = line; *c; c++) values += *c == '[' || *c == ',' || *c == ':';
    Json *tree = calloc(values, sizeof *tree);
    if (!tree) refuse("out of memory");
    Reader r = {line, tree};
    read_value(&r, 0);
    return tree;
}

/* The member of an object by its name, NULL if there is none. */
static const Json *get(const Json *object, const char *key) {
    const Json *member = object && object->kind == OBJECT ? object->first : NULL;
    while (member && strcmp(member->key, key)) member = member->next;
    return member;
}

static int is(const Json *object, const char *key, const char *text) {
    const Json *member = get(object, key);
    return member && member->kind == TEXT && !strcmp(member->text, text);
}
#endif
