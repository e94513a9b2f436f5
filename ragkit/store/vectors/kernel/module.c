/* The Python face of maxsim.c: buffers in, buffers filled. It checks sizes, so that no call can read or write outside its
 * arguments; types and meaning are checked in ragkit/store/vectors/tiles.py. The GIL is released while it works. */
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <string.h>

#include "maxsim.h"

enum { WIDEST = 32768 }; /* dimensions: below this no sum of byte products leaves 32 bits */

static const Path *path_named(const char *name) {
    for (int place = 0; maxsim_path(place); place++) {
        if (strcmp(maxsim_path_name(maxsim_path(place)), name) == 0) return maxsim_path(place);
    }
    PyErr_Format(PyExc_ValueError, "this machine has no kernel %s", name);
    return NULL;
}

static PyObject *fail(int64_t error, const char *what) {
    if (error == NO_MEMORY) return PyErr_NoMemory();
    PyErr_Format(PyExc_ValueError, what, (long long)(BAD_ITEM - error));
    return NULL;
}

static const char BAD_OFFSETS[] = "item %lld is not there, or its offsets are not ascending within the values";

/* The arguments that scan and totals share. */
typedef struct {
    Py_buffer values, offsets, rows, bounds, per_unit, weights;
    Items items;
    Queries queries;
    const Path *path;
} Call;

static int is_sound(Call *call, const char *name, int precision, int weighed, long long width) {
    static const int SIZES[] = {1, 2, 4};
    call->path = path_named(name);
    if (!call->path) return 0;
    if (precision < CODES || precision > FLOATS || width < 1 || width > WIDEST || (precision == CODES && width % 4) ||
        weighed < 0 || weighed > (precision == CODES)) {
        PyErr_Format(PyExc_ValueError, "precision %d with width %lld: codes need a multiple of 4, at most %d", precision, width, WIDEST);
        return 0;
    }
    const Py_ssize_t row_bytes = (Py_ssize_t)width * (precision == CODES ? 1 : 4);
    call->items = (Items){precision, call->values.buf, weighed, call->values.len / ((width + weighed) * SIZES[precision]), width,
                          call->offsets.buf, call->offsets.len / 8 - 1};
    call->queries.rows = call->rows.buf;
    call->queries.bounds = call->bounds.buf;
    call->queries.count = call->bounds.len / 8 - 1;
    call->queries.per_unit = call->per_unit.buf;
    call->queries.weights = call->weights.buf;
    if (call->items.count < 0 || call->queries.count < 1 || call->queries.bounds[0] != 0 ||
        call->queries.bounds[call->queries.count] != call->rows.len / row_bytes || call->per_unit.len / 8 != call->queries.count ||
        call->weights.len / 8 != call->rows.len / row_bytes) {
        PyErr_SetString(PyExc_ValueError, "offsets, rows, bounds, per_unit and weights do not fit");
        return 0;
    }
    for (int64_t j = 0; j < call->queries.count; j++) {
        if (call->queries.bounds[j] >= call->queries.bounds[j + 1]) {
            PyErr_Format(PyExc_ValueError, "query %lld is empty", (long long)j);
            return 0;
        }
    }
    return 1;
}

static void release(Call *call) {
    PyBuffer_Release(&call->values);
    PyBuffer_Release(&call->offsets);
    PyBuffer_Release(&call->rows);
    PyBuffer_Release(&call->bounds);
    PyBuffer_Release(&call->per_unit);
    PyBuffer_Release(&call->weights);
}

static PyObject *scan(PyObject *self, PyObject *args) {
    (void)self;
    Call call;
    Py_buffer keys, best, allowed = {0};
    PyObject *mask, *result = NULL;
    const char *name;
    int precision, weighed;
    long long width, start, stop, k;
    if (!PyArg_ParseTuple(args, "siiLy*y*y*y*y*y*y*OLLLw*", &name, &precision, &weighed, &width, &call.values, &call.offsets,
                          &call.rows, &call.bounds, &call.per_unit, &call.weights, &keys, &mask, &start, &stop, &k, &best)) return NULL;
    if (mask != Py_None && PyObject_GetBuffer(mask, &allowed, PyBUF_SIMPLE) < 0) goto done;
    if (!is_sound(&call, name, precision, weighed, width)) goto done;
    if (keys.len / 8 != call.items.count || (mask != Py_None && allowed.len != call.items.count) || start < 0 ||
        stop > call.items.count || k < 0 || k > best.len / (Py_ssize_t)sizeof(Ranked) / call.queries.count) {
        PyErr_Format(PyExc_ValueError, "%lld items: keys, allowed, start, stop, k and best do not fit", (long long)call.items.count);
        goto done;
    }
    int64_t size;
    Py_BEGIN_ALLOW_THREADS
    size = maxsim_scan(call.path, &call.items, &call.queries, keys.buf, allowed.buf, start, stop, k, best.buf);
    Py_END_ALLOW_THREADS
    result = size < 0 ? fail(size, BAD_OFFSETS) : PyLong_FromLongLong(size);
done:
    if (allowed.obj) PyBuffer_Release(&allowed);
    PyBuffer_Release(&keys);
    PyBuffer_Release(&best);
    release(&call);
    return result;
}

static PyObject *totals(PyObject *self, PyObject *args) {
    (void)self;
    Call call;
    Py_buffer positions, out;
    PyObject *result = NULL;
    const char *name;
    int precision, weighed;
    long long width;
    if (!PyArg_ParseTuple(args, "siiLy*y*y*y*y*y*y*w*", &name, &precision, &weighed, &width, &call.values, &call.offsets, &call.rows,
                          &call.bounds, &call.per_unit, &call.weights, &positions, &out)) return NULL;
    if (!is_sound(&call, name, precision, weighed, width)) goto done;
    if (out.len / 8 / call.queries.count < positions.len / 8) {
        PyErr_SetString(PyExc_ValueError, "no room for the totals");
        goto done;
    }
    const int64_t *chosen = positions.buf;
    for (Py_ssize_t i = 0; i < positions.len / 8; i++) {
        if (chosen[i] < 0 || chosen[i] >= call.items.count) {
            PyErr_Format(PyExc_ValueError, "there is no item %lld", (long long)chosen[i]);
            goto done;
        }
    }
    int64_t error;
    Py_BEGIN_ALLOW_THREADS
    error = maxsim_totals(call.path, &call.items, &call.queries, positions.buf, positions.len / 8, out.buf);
    Py_END_ALLOW_THREADS
    result = error ? fail(error, BAD_OFFSETS) : Py_NewRef(Py_None);
done:
    PyBuffer_Release(&positions);
    PyBuffer_Release(&out);
    release(&call);
    return result;
}

static PyObject *quantise(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer values, signs, codes;
    PyObject *result = NULL;
    long long dims, width;
    float step;
    int weighed;
    double worst[2];
    if (!PyArg_ParseTuple(args, "y*LLy*fpw*", &values, &dims, &width, &signs, &step, &weighed, &codes)) return NULL;
    if (dims < 1 || width < dims || width > WIDEST || signs.len != 12 * dims || !(step > 0) ||
        values.len / (4 * dims) * (width + weighed) != codes.len) {
        PyErr_SetString(PyExc_ValueError, "values, signs, step and codes do not fit");
        goto done;
    }
    int64_t error;
    Py_BEGIN_ALLOW_THREADS
    error = maxsim_quantise(values.buf, values.len / (4 * dims), dims, width, signs.buf, step, weighed,
                            codes.buf, worst);
    Py_END_ALLOW_THREADS
    result = error ? fail(error, "row %lld is not finite, or longer than 1e15") : Py_BuildValue("dd", worst[0], worst[1]);
done:
    PyBuffer_Release(&values);
    PyBuffer_Release(&signs);
    PyBuffer_Release(&codes);
    return result;
}

static PyObject *thin(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer codes, offsets, fewer;
    PyObject *result = NULL;
    long long width, factor;
    if (!PyArg_ParseTuple(args, "y*Ly*Lw*", &codes, &width, &offsets, &factor, &fewer)) return NULL;
    const int64_t count = offsets.len / 8 - 1, tokens = width < 1 ? 0 : codes.len / (width + 1), *places = offsets.buf;
    if (width < 1 || width > WIDEST || factor < 1 || factor > RUN || count < 0) {
        PyErr_SetString(PyExc_ValueError, "codes, width, offsets and factor do not fit");
        goto done;
    }
    int64_t rows = 0;
    for (int64_t i = 0; i < count; i++) {
        if (places[i] < 0 || places[i] >= places[i + 1] || places[i + 1] > tokens) {
            PyErr_Format(PyExc_ValueError, BAD_OFFSETS, (long long)i);
            goto done;
        }
        const int64_t size = places[i + 1] - places[i];
        rows += size / RUN * ((RUN + factor - 1) / factor) + (size % RUN + factor - 1) / factor;
    }
    if (fewer.len != rows * (width + 1)) {
        PyErr_SetString(PyExc_ValueError, "no room for the fewer rows");
        goto done;
    }
    int64_t error;
    Py_BEGIN_ALLOW_THREADS
    error = maxsim_thin(codes.buf, tokens, width, offsets.buf, count, factor, fewer.buf);
    Py_END_ALLOW_THREADS
    result = error ? fail(error, BAD_OFFSETS) : Py_NewRef(Py_None);
done:
    PyBuffer_Release(&codes);
    PyBuffer_Release(&offsets);
    PyBuffer_Release(&fewer);
    return result;
}

static PyObject *kernels(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *names = PyList_New(0);
    for (int place = 0; names && maxsim_path(place); place++) {
        PyObject *name = PyUnicode_FromString(maxsim_path_name(maxsim_path(place)));
        if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

/* compiled.py uses no extension that was built for other arguments than its own. */
static PyObject *interface(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyLong_FromLong(3);
}

static PyObject *spin(PyObject *self, PyObject *args) {
    (void)self;
    const char *name;
    long long rounds;
    if (!PyArg_ParseTuple(args, "sL", &name, &rounds)) return NULL;
    const Path *path = path_named(name);
    if (!path) return NULL;
    int64_t operations;
    Py_BEGIN_ALLOW_THREADS
    operations = maxsim_spin(path, rounds);
    Py_END_ALLOW_THREADS
    return PyLong_FromLongLong(operations);
}

static PyMethodDef METHODS[] = {
    {"scan", scan, METH_VARARGS,
     "scan(kernel, precision, weighed, width, values, offsets, rows, bounds, per_unit, weights, keys, allowed, start, stop, k, best)"
     " -> found"},
    {"totals", totals, METH_VARARGS,
     "totals(kernel, precision, weighed, width, values, offsets, rows, bounds, per_unit, weights, positions, out) -> None"},
    {"quantise", quantise, METH_VARARGS,
     "quantise(values, dims, width, signs, step, weighed, codes) -> (largest squared loss, largest squared length)"},
    {"thin", thin, METH_VARARGS, "thin(codes, width, offsets, factor, fewer) -> None"},
    {"kernels", kernels, METH_NOARGS, "kernels() -> the names this machine runs, best first"},
    {"interface", interface, METH_NOARGS, "interface() -> the number that compiled.py must expect"},
    {"spin", spin, METH_VARARGS, "spin(kernel, rounds) -> operations done, in registers alone; 0 where there is no such loop"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_maxsim",
    .m_doc = "The MaxSim kernel in C; see ragkit/store/vectors/maxsim.py.",
    .m_methods = METHODS,
};

PyMODINIT_FUNC PyInit__maxsim(void) { return PyModuleDef_Init(&MODULE); }
