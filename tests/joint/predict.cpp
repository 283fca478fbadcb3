// A joint model without Python: predict MODEL IMAGES N CHANNELS HEIGHT WIDTH, where IMAGES is N x C x H x W raw bytes.
// Prints the probabilities, one line per image.
#include <torch/script.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

int main(int count, char** given) {
  if (count != 7) {
    std::fprintf(stderr, "predict MODEL IMAGES N CHANNELS HEIGHT WIDTH\n");
    return 2;
  }
  std::vector<int64_t> shape;
  for (int i = 3; i < 7; i++) shape.push_back(std::atoll(given[i]));
  std::ifstream file(given[2], std::ios::binary);
  std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());

  torch::InferenceMode guard;
  torch::jit::Module model = torch::jit::load(given[1], torch::kCPU);
  torch::Tensor images = torch::from_blob(bytes.data(), {static_cast<int64_t>(bytes.size())}, torch::kUInt8);
  torch::Tensor probabilities = model.forward({images.view(shape)}).toTensor();

  for (int64_t row = 0; row < probabilities.size(0); row++) {
    for (int64_t label = 0; label < probabilities.size(1); label++)
      std::printf("%s%.6f", label ? " " : "", probabilities[row][label].item<float>());
    std::printf("\n");
  }
}
