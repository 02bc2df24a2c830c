// TensorRT, and what its provider wants of cuDNN, as far as the reading of its options: an object all of whose methods give nothing. Nothing
// is computed.

namespace {

void *nothing() { return nullptr; }

struct Object {
  void **methods;
  Object *members[64];
};

Object *object() {
  static void *methods[512];
  static Object made;
  for (auto &method : methods) method = reinterpret_cast<void *>(nothing);
  made.methods = methods;
  for (auto &member : made.members) member = &made;
  return &made;
}

}  // namespace

extern "C" {
void *createInferBuilder_INTERNAL(void *, int) { return object(); }
void *createInferRefitter_INTERNAL(void *, void *, int) { return object(); }
void *createInferRuntime_INTERNAL(void *, int) { return object(); }
void *createNvOnnxParser_INTERNAL(void *, void *, int) { return object(); }
void *createNvOnnxParserRefitter_INTERNAL(void *, void *, int) { return object(); }
void *getPluginRegistry() { return object(); }
int getInferLibVersion() { return 101000; }
int cudnnCreate(void **) { return 0; }
int cudnnDestroy(void *) { return 0; }
int cudnnSetStream(void *, void *) { return 0; }
}
